/**
 * Slots that peers share. A peer may take one more while it holds fewer than are free, so that nobody takes the last: alone
 * it gets half of them, and the next peer half of what is left.
 */
export class FairSlots {
  private readonly held = new Map<string, number>();
  private taken = 0;

  constructor(readonly max: number) {}

  get free(): number {
    return this.max - this.taken;
  }

  heldBy(peer: string): number {
    return this.held.get(peer) ?? 0;
  }

  /** Returns what gives the slot back, which may be called again without effect; null: the peer must not have one now. */
  take(peer: string): (() => void) | null {
    const own = this.heldBy(peer);
    if (own >= this.free) return null;
    this.taken += 1;
    this.held.set(peer, own + 1);
    let open = true;
    return () => {
      if (open) this.giveBack(peer);
      open = false;
    };
  }

  private giveBack(peer: string): void {
    this.taken -= 1;
    const left = this.heldBy(peer) - 1;
    if (left === 0) this.held.delete(peer);
    else this.held.set(peer, left);
  }
}
