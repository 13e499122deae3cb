import type { ExpertCopies, GroupLimits, GroupTargets } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import { checkToken, groupLimits } from '../transport/limits.js';
import type { Link } from '../transport/link.js';
import type { Links } from './links.js';
import type { PlacementIndex } from './placement.js';
import type { BatchPlan } from './plan.js';
import type { WorkerPaces } from './worker-paces.js';

/** Where the rows of a layer can go now. */
export interface Destination {
  placement: PlacementIndex;
  /** The copies within reach; of those at workers that are late, only where there is no other. */
  copies: ExpertCopies;
  /** By worker; null: there is no link, it is avoided, or the worker has no experts of the layer. */
  links: readonly (Link | null)[];
  /** By worker: it is on this router's host. */
  near: readonly boolean[];
  /** Whether an expert has several of the copies. */
  replicated: boolean;
  /** What a token batch may have. */
  limits: GroupLimits;
}

/** The destinations of layers. What was found stays until the placement, a link, or who is late changes. */
export class Destinations {
  private readonly known = new Map<number, Destination>();
  private placement: PlacementIndex | null = null;
  private changes = 0;

  constructor(
    private readonly links: Links,
    private readonly paces: WorkerPaces,
  ) {}

  /** Throws TOO_LARGE, naming a worker's setting, if there are tokens that the plan's links could not carry. */
  check(plan: BatchPlan, placement: PlacementIndex): void {
    for (const { layer } of plan.layers) {
      if (this.get(placement, layer, plan) !== undefined) continue;
      for (const [worker, choices] of choicesAt(placement, layer, plan.slots).entries()) {
        const { link } = this.links.find(placement.workers[worker]!);
        if (link !== null && choices > 0) checkToken(link, choices, plan);
      }
    }
  }

  /** `avoided`: links that are not to be used. Throws as `check` does. */
  find(placement: PlacementIndex, layer: number, plan: BatchPlan, avoided: ReadonlySet<Link>): Destination {
    if (avoided.size > 0) return this.make(placement, layer, plan, avoided);
    const known = this.get(placement, layer, plan);
    if (known !== undefined) return known;
    const made = this.make(placement, layer, plan, avoided);
    this.known.set(keyOf(layer, plan), made);
    return made;
  }

  /** As the kernels take it. */
  targets({ copies, links, near, replicated, limits }: Destination): GroupTargets {
    const pace = replicated ? this.paces.describe(links, near) : null;
    return { copies, workers: links.length, pace, limits };
  }

  private make(
    placement: PlacementIndex,
    layer: number,
    plan: BatchPlan,
    avoided: ReadonlySet<Link>,
  ): Destination {
    const { workers } = placement;
    const all = requirePlaced(placement, layer);
    const experts = placement.expertsAt.get(layer)!;
    const links = workers.map((name, worker) => {
      const { link } = this.links.find(name);
      return link === null || experts[worker] === 0 || avoided.has(link) ? null : link;
    });
    const late = links.map((link) => link !== null && this.paces.isSuspect(link));
    const isWhole = links.every((link, worker) => link !== null || experts[worker] === 0);
    const copies = isWhole && !late.includes(true) ? all : withinReach(all, links, late);
    return {
      placement,
      copies,
      links,
      near: workers.map((name) => this.links.isNear(name)),
      replicated: copies.offsets.some((end, at) => at > 0 && end - copies.offsets[at - 1]! > 1),
      limits: groupLimits(links, choicesAt(placement, layer, plan.slots), plan),
    };
  }

  private get(placement: PlacementIndex, layer: number, plan: BatchPlan): Destination | undefined {
    const changes = this.links.changes + this.paces.changes;
    if (this.placement !== placement || this.changes !== changes) {
      this.known.clear();
      this.placement = placement;
      this.changes = changes;
    }
    return this.known.get(keyOf(layer, plan));
  }
}

/** What a destination depends on, beside placement, links and who is late. */
function keyOf(layer: number, { combine }: BatchPlan): number {
  return layer * 2 + (combine === 'exact' ? 0 : 1);
}

/** How many of a token's experts each worker may have at a layer. */
function choicesAt(placement: PlacementIndex, layer: number, slots: number): number[] {
  return [...placement.expertsAt.get(layer)!].map((experts) => Math.min(experts, slots));
}

/** The copies of every expert of a layer. Throws WORKER_LOST if the placement does not have it. */
function requirePlaced({ copies, term, epoch }: PlacementIndex, layer: number): ExpertCopies {
  const placed = copies.get(layer);
  if (placed !== undefined) return placed;
  const text = `the experts of layer ${layer} are on no worker`;
  throw new SwitchyardError('WORKER_LOST', text, { worker: null, layer, term, epoch });
}

function withinReach(
  copies: ExpertCopies,
  links: readonly (Link | null)[],
  late: readonly boolean[],
): ExpertCopies {
  const offsets = new Uint32Array(copies.offsets.length);
  const workers: number[] = [];
  for (let expert = 0; expert + 1 < offsets.length; expert += 1) {
    const all = copies.workers.subarray(copies.offsets[expert]!, copies.offsets[expert + 1]!);
    const reached = all.filter((worker) => links[worker] !== null);
    const prompt = reached.filter((worker) => !late[worker]);
    workers.push(...(prompt.length > 0 ? prompt : reached));
    offsets[expert + 1] = workers.length;
  }
  return { offsets, workers: Uint32Array.from(workers) };
}
