import type { ExpertOrder } from '../model/expert-order.js';

const halfLifeSeconds = 60;
/** A load of fewer rows a second than this, over all experts, is none. */
const rowsPerSecondMin = 1e-3;

/** What routers send to each expert: an average over time in which what is older counts less. Times are monotonic milliseconds. */
export class ExpertLoads {
  /** By number of the expert: decayed rows. */
  private readonly rows: Float64Array;
  /** When they were decayed last. */
  private atMs = 0;
  /** What `rates` tells until rows change. */
  private told: Float64Array | null = null;
  /** Whether there was ever any. */
  heard = false;

  constructor(private readonly order: ExpertOrder) {
    this.rows = new Float64Array(order.total);
  }

  /** Adds rows of the experts of a layer of the model. */
  observe(layer: number, rows: Uint32Array, nowMs: number): void {
    this.decay(nowMs);
    this.heard = true;
    this.told = null;
    const first = this.order.indexOf({ layer, expert: 0 });
    for (let expert = 0; expert < rows.length; expert += 1) this.rows[first + expert]! += rows[expert]!;
  }

  /** Rows a second by number of the expert; null if there are next to none. The same array as before if nothing has changed. Not to be written to. */
  rates(nowMs: number): Float64Array | null {
    this.decay(nowMs);
    if (this.told === null) {
      const perSecond = Math.LN2 / halfLifeSeconds;
      this.told = this.rows.map((rows) => rows * perSecond);
    }
    return this.told.reduce((sum, rate) => sum + rate, 0) < rowsPerSecondMin ? null : this.told;
  }

  private decay(nowMs: number): void {
    // Often enough for the average, and rarely enough to cost nothing.
    const seconds = (nowMs - this.atMs) / 1000;
    if (seconds < 1) return;
    this.atMs = nowMs;
    this.told = null;
    const factor = 2 ** (-seconds / halfLifeSeconds);
    for (let expert = 0; expert < this.rows.length; expert += 1) this.rows[expert]! *= factor;
  }
}
