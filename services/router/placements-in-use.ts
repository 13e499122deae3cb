import type { PlacementIndex } from './placement.js';

/** Which placements the chunks under way use, so that a copy is dropped only when none will ask for it any more. */
export class PlacementsInUse {
  /** By age: placements come one after the other, and chunks begin with the latest. */
  private readonly uses = new Map<PlacementIndex, number>();

  /** `onLeft`: called when the oldest one is used no more. */
  constructor(private readonly onLeft: (placement: PlacementIndex) => void) {}

  /** Null: none is used. */
  get oldest(): PlacementIndex | null {
    for (const placement of this.uses.keys()) return placement;
    return null;
  }

  all(): Iterable<PlacementIndex> {
    return this.uses.keys();
  }

  enter(placement: PlacementIndex): void {
    this.uses.set(placement, (this.uses.get(placement) ?? 0) + 1);
  }

  leave(placement: PlacementIndex): void {
    const left = this.uses.get(placement)! - 1;
    if (left > 0) {
      this.uses.set(placement, left);
      return;
    }
    const isOldest = this.oldest === placement;
    this.uses.delete(placement);
    if (isOldest) this.onLeft(placement);
  }
}
