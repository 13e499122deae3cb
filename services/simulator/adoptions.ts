import { heldMsMax } from '../router/known-cluster.js';
import type { PlacementIndex } from '../router/placement.js';
import type { RouterNode } from './nodes.js';
import type { SimulatedProcess } from './process.js';
import type { VirtualTime } from './virtual-time.js';

interface Seen {
  placement: PlacementIndex | null;
  /** Of its links. */
  changes: number;
  /** Since it was without a coordinator no placement has come. */
  isNew: boolean;
  /** Since when it holds copies of placements before; null: it holds none. */
  heldSinceMs: number | null;
}

const clockSlack = 0.98;

/** A router that goes on to another placement while its links stay as they are, reaches by it what it reached before, but for what it has held for as long as it may. */
export class Adoptions {
  private readonly seen = new WeakMap<SimulatedProcess, Seen>();

  constructor(
    private readonly time: VirtualTime,
    private readonly violated: (what: string) => void,
  ) {}

  check({ process, core }: RouterNode): void {
    const { cluster, links } = core;
    const { nowMs } = this.time;
    const before = this.seen.get(process) ?? { placement: null, changes: 0, isNew: true, heldSinceMs: null };
    const now = { placement: cluster.placement, changes: links.changes };
    const hasMoved = now.placement !== before.placement;
    const isNew = !cluster.connected || (before.isNew && !hasMoved);
    const holds = (now.placement?.held.length ?? 0) > 0;
    this.seen.set(process, { ...now, isNew, heldSinceMs: holds ? (before.heldSinceMs ?? nowMs) : null });
    if (before.heldSinceMs !== null && nowMs - before.heldSinceMs >= heldMsMax * clockSlack) return;
    if (!hasMoved || before.isNew || before.changes !== now.changes) return;
    if (before.placement === null || now.placement === null) return;
    const reached = reachedBy(core, before.placement);
    for (const [expert, isReached] of reachedBy(core, now.placement))
      if (!isReached && reached.get(expert) === true)
        this.violated(
          `${process.name} reached expert ${expert}, and went to a placement by which it does not, epoch ${now.placement.epoch}`,
        );
  }
}

/** The experts that have copies, and whether there is a link to one. */
function reachedBy({ links }: RouterNode['core'], { copies, workers }: PlacementIndex): Map<string, boolean> {
  const hasLink = workers.map((worker) => links.find(worker).link !== null);
  const reached = new Map<string, boolean>();
  for (const [layer, { offsets, workers: holders }] of copies)
    for (let expert = 0; expert + 1 < offsets.length; expert += 1) {
      const own = holders.subarray(offsets[expert], offsets[expert + 1]);
      if (own.length > 0)
        reached.set(
          `${layer}/${expert}`,
          own.some((worker) => hasLink[worker]),
        );
    }
  return reached;
}
