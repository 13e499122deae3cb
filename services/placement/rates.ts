/** A rate as it was measured, and the standard error of that. */
export interface Rate {
  value: number;
  error: number;
}

/** Rates differ from their median by chance by so many of their standard errors. */
const chanceErrors = 3;
/** Plans take workers that differ by less to be equally fast: in computing, and in loading. */
export const likeFactor = { rowsPerSecond: 1.25, loadBytesPerSecond: 1.1 };
/** Fewer intervals tell nothing of how much they differ. */
const intervalsMin = 4;

/**
 * A quotient of two sums over intervals, of which older ones count less: of amounts and of what these are of. Its error is that of a ratio estimator,
 * from how far the intervals are from it.
 */
export class MeasuredRate {
  private amounts = 0;
  private bases = 0;
  private weights = 0;
  /** By squared weights. */
  private readonly squares = { weights: 0, amounts: 0, products: 0, bases: 0 };

  /** What was measured before an interval counts `decay` times as much after it. */
  constructor(private readonly decay: number) {}

  add(amount: number, base: number): void {
    const { decay, squares } = this;
    this.amounts = this.amounts * decay + amount;
    this.bases = this.bases * decay + base;
    this.weights = this.weights * decay + 1;
    squares.weights = squares.weights * decay ** 2 + 1;
    squares.amounts = squares.amounts * decay ** 2 + amount ** 2;
    squares.products = squares.products * decay ** 2 + amount * base;
    squares.bases = squares.bases * decay ** 2 + base ** 2;
  }

  /** Null: nothing was measured. An infinite error: too little. */
  get rate(): Rate | null {
    if (!(this.bases > 0)) return null;
    const value = this.amounts / this.bases;
    return { value, error: this.errorOf(value) };
  }

  private errorOf(value: number): number {
    const { squares, weights, bases } = this;
    const intervals = weights ** 2 / squares.weights;
    // The last one has a weight of 1, so that rounding stays far below.
    if (intervals < intervalsMin - 0.5) return Number.POSITIVE_INFINITY;
    const apart = squares.amounts - 2 * value * squares.products + value ** 2 * squares.bases;
    return Math.sqrt((Math.max(0, apart) * intervals) / (intervals - 1)) / bases;
  }
}

/** A rate that is told without its error. */
export const exactly = (value: number | null): Rate | null => (value === null ? null : { value, error: 0 });

/**
 * Rates to reckon with: those that differ from the median by no more than chance does, or by less than `factor`, are the same, so that it moves no rows
 * and no copies. What was not measured (null) is the median. `assumed` is that where nothing was measured.
 */
export function usualRates(measured: readonly (Rate | null)[], assumed: number, factor: number): number[] {
  const known = measured.flatMap((rate) => rate?.value ?? []).sort((a, b) => a - b);
  const middle = known.length >> 1;
  const median =
    known.length === 0
      ? assumed
      : known.length % 2 === 1
        ? known[middle]!
        : (known[middle - 1]! + known[middle]!) / 2;
  return measured.map((rate) => {
    if (rate === null) return median;
    const near = rate.value * factor >= median && rate.value <= median * factor;
    return near || Math.abs(rate.value - median) <= chanceErrors * rate.error ? median : rate.value;
  });
}
