import type { ExpertOrder } from '../model/expert-order.js';

const halfLifeSeconds = 60;
/** A load of fewer rows a second than this, over all experts, is none. */
const rowsPerSecondMin = 1e-3;
/** Rows count for less and less, and are told in units that do: these get no smaller than this. */
const unitMin = 2 ** -64;

/**
 * What routers send to each expert: an average over time in which what is older counts less. Times are monotonic milliseconds.
 * All experts' rows lose the same share of their weight with time, so nothing is done for each of them as long as there are no new rows.
 */
export class ExpertLoads {
  /** By number of the expert, in units that count `unit` rows each. */
  private readonly rows: Float64Array;
  private total = 0;
  private unit = 1;
  /** When it was decayed last. */
  private atMs = 0;
  /** What `rates` tells until rows or their weight change. */
  private told: Float64Array | null = null;
  /** Whether there was ever any. */
  heard = false;
  /** Counts changes of the experts' shares of the load. */
  version = 0;

  constructor(private readonly order: ExpertOrder) {
    this.rows = new Float64Array(order.total);
  }

  /** Adds rows of the experts of a layer of the model. */
  observe(layer: number, rows: Uint32Array, nowMs: number): void {
    this.decay(nowMs);
    this.heard = true;
    this.told = null;
    this.version += 1;
    const first = this.order.indexOf({ layer, expert: 0 });
    for (let expert = 0; expert < rows.length; expert += 1) {
      const units = rows[expert]! / this.unit;
      this.rows[first + expert]! += units;
      this.total += units;
    }
  }

  /** Rows a second by number of the expert; null if there are next to none. The same array as before if nothing has changed. Not to be written to. */
  rates(nowMs: number): Float64Array | null {
    const perUnit = this.ratePerUnit(nowMs);
    if (perUnit === null) return null;
    this.told ??= this.rows.map((rows) => rows * perUnit);
    return this.told;
  }

  /** The experts' proportions, by number: their rates are these by `ratePerUnit`. As they are until `version` changes. Not to be written to. */
  get proportions(): Float64Array {
    return this.rows;
  }

  /** Rows a second of a proportion of 1; null if there are next to none of all experts together. */
  ratePerUnit(nowMs: number): number | null {
    this.decay(nowMs);
    const perUnit = this.unit * (Math.LN2 / halfLifeSeconds);
    return this.total * perUnit < rowsPerSecondMin ? null : perUnit;
  }

  private decay(nowMs: number): void {
    // Often enough for the average, and rarely enough to cost nothing.
    const seconds = (nowMs - this.atMs) / 1000;
    if (seconds < 1) return;
    this.atMs = nowMs;
    this.told = null;
    this.unit *= 2 ** (-seconds / halfLifeSeconds);
    if (this.unit >= unitMin) return;
    for (let expert = 0; expert < this.rows.length; expert += 1) this.rows[expert]! *= this.unit;
    this.total *= this.unit;
    this.unit = 1;
    this.version += 1;
  }
}
