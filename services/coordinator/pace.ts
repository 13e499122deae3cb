export interface PaceOptions {
  atOnce: number;
  perSecond: number;
}

/** How often something may happen: `atOnce` times, and from then on `perSecond`. Times are monotonic milliseconds. */
export class Pace {
  private left: number;
  private atMs: number;

  constructor(
    readonly options: PaceOptions,
    nowMs: number,
  ) {
    this.left = options.atOnce;
    this.atMs = nowMs;
  }

  /** Counts one more; false if it came too soon. */
  take(nowMs: number): boolean {
    const { atOnce, perSecond } = this.options;
    this.left = Math.min(atOnce, this.left + ((nowMs - this.atMs) / 1000) * perSecond);
    this.atMs = nowMs;
    if (this.left < 1) return false;
    this.left -= 1;
    return true;
  }
}
