import type { GroupLimits } from '../../native/index.js';
import { checkToken, groupLimits } from '../transport/limits.js';
import type { Links } from './links.js';
import type { PlacementIndex } from './placement.js';
import type { BatchPlan } from './plan.js';

/** A worker's link, or why it has none. */
export type FoundLink = Awaited<ReturnType<Links['settled']>>;

/** Where the rows of a layer go. */
export interface Destination {
  /** By worker. */
  links: readonly FoundLink[];
  /** What a token batch may have. */
  limits: GroupLimits;
}

const noExperts: FoundLink = { link: null, reason: 'the worker has no experts of the layer' };

/** The destinations of layers. What was found stays until the placement or a link changes. */
export class Destinations {
  private readonly known = new Map<number, Destination>();
  private placement: PlacementIndex | null = null;
  private changes = 0;

  constructor(private readonly links: Links) {}

  /** Throws TOO_LARGE, naming a worker's setting, if there are tokens that the plan's links could not carry. */
  check(plan: BatchPlan, placement: PlacementIndex): void {
    for (const { layer } of plan.layers) {
      if (this.get(placement, layer, plan) !== undefined) continue;
      for (const [worker, choices] of choicesAt(placement, layer, plan.topK).entries()) {
        const { link } = this.links.find(placement.workers[worker]!);
        if (link !== null && choices > 0) checkToken(link, choices, plan);
      }
    }
  }

  /** The destination of a layer's rows, once first attempts to connect have ended. Rejects as `check` throws. */
  async find(placement: PlacementIndex, layer: number, plan: BatchPlan): Promise<Destination> {
    const known = this.get(placement, layer, plan);
    if (known !== undefined) return known;
    const experts = placement.expertsAt.get(layer)!;
    const links = await Promise.all(
      placement.workers.map((name, worker) => (experts[worker]! > 0 ? this.links.settled(name) : noExperts)),
    );
    const open = links.map(({ link }) => link);
    const found = { links, limits: groupLimits(open, choicesAt(placement, layer, plan.topK), plan) };
    const whole = links.every((one) => one.link !== null || one === noExperts);
    if (whole && placement === this.placement && this.links.changes === this.changes)
      this.known.set(keyOf(layer, plan), found);
    return found;
  }

  private get(placement: PlacementIndex, layer: number, plan: BatchPlan): Destination | undefined {
    if (this.placement !== placement || this.changes !== this.links.changes) {
      this.known.clear();
      this.placement = placement;
      this.changes = this.links.changes;
    }
    return this.known.get(keyOf(layer, plan));
  }
}

/** What a destination depends on, beside placement and links. */
function keyOf(layer: number, { combine }: BatchPlan): number {
  return layer * 2 + (combine === 'exact' ? 0 : 1);
}

/** How many of a token's experts each worker may have at a layer. */
function choicesAt(placement: PlacementIndex, layer: number, topK: number): number[] {
  return [...placement.expertsAt.get(layer)!].map((experts) => Math.min(experts, topK));
}
