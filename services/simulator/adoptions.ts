import type { PlacementIndex } from '../router/placement.js';
import type { RouterNode } from './nodes.js';
import type { SimulatedProcess } from './process.js';
import type { VirtualTime } from './virtual-time.js';

interface Seen {
  placement: PlacementIndex | null;
  /** Of its links. */
  changes: number;
  /** Counts what its name has joined as at the coordinator that leads; null: it is no member there. */
  incarnation: number | null;
  /** It has joined anew, and no placement has come since. */
  isNew: boolean;
  /** Expert to since when copies of it are held that are in no later placement. */
  heldSinceMs: ReadonlyMap<string, number>;
}

/** For so long a router must go on with copies that are to go, where it reaches no others; clocks are up to 1 % wrong. */
const heldMsMin = 20_000 * 0.98;
const unseen: Seen = { placement: null, changes: 0, incarnation: null, isNew: true, heldSinceMs: new Map() };

/**
 * A router that goes on to another placement while its links stay as they are, reaches by it what it reached before, but for what it has held for as long
 * as it must.
 */
export class Adoptions {
  private readonly seen = new WeakMap<SimulatedProcess, Seen>();

  constructor(
    private readonly time: VirtualTime,
    private readonly violated: (what: string) => void,
  ) {}

  check({ process, core }: RouterNode, incarnation: number | null): void {
    const { cluster, links } = core;
    const before = this.seen.get(process) ?? unseen;
    const { placement } = cluster;
    const hasMoved = placement !== before.placement;
    const hasJoined = !cluster.connected || incarnation === null || incarnation !== before.incarnation;
    this.seen.set(process, {
      placement,
      changes: links.changes,
      incarnation,
      isNew: hasJoined || (before.isNew && !hasMoved),
      heldSinceMs: this.heldSince(placement, before.heldSinceMs),
    });
    if (!hasMoved || hasJoined || before.isNew || before.changes !== links.changes) return;
    if (before.placement === null || placement === null) return;
    const reached = reachedBy(core, before.placement);
    for (const [expert, isReached] of reachedBy(core, placement)) {
      if (isReached || reached.get(expert) !== true) continue;
      const heldMs = this.time.nowMs - (before.heldSinceMs.get(expert) ?? this.time.nowMs);
      if (heldMs >= heldMsMin) continue;
      this.violated(
        `${process.name} reached expert ${expert}, and went to a placement by which it does not, epoch ${placement.epoch}`,
      );
    }
  }

  private heldSince(
    placement: PlacementIndex | null,
    before: ReadonlyMap<string, number>,
  ): ReadonlyMap<string, number> {
    const experts = (placement?.held ?? []).map(({ layer, expert }) => `${layer}/${expert}`);
    return new Map(experts.map((expert) => [expert, before.get(expert) ?? this.time.nowMs]));
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
