/** Calls are counted in classes by their rows: from 1, 2, 3, 4, 6, 8, 12, 16 … on, so that those of a class take about as long for a row. The last has no end. */
export const callSizes = 32;

/** The class of a call, below `callSizes`. `rows`: 1 to 2^30 - 1. */
export function callSize(rows: number): number {
  const power = 31 - Math.clz32(rows);
  const isUpperHalf = ((2 * rows) >> power) & 1;
  return Math.max(0, Math.min(callSizes - 1, 2 * power + isUpperHalf - 1));
}

/** The fewest rows of a call of a class. */
export function rowsFrom(size: number): number {
  const power = (size + 1) >> 1;
  return size === 0 ? 1 : 2 ** power * ((size + 1) % 2 === 0 ? 1 : 1.5);
}

/** What a worker has computed since its start. A call is that of one expert, for whatever batches. */
export class CallCounts {
  rows = 0;
  seconds = 0;
  private readonly rowsBySize = new Float64Array(callSizes);
  private readonly secondsBySize = new Float64Array(callSizes);

  add(rows: number, seconds: number): void {
    this.rows += rows;
    this.seconds += seconds;
    const size = callSize(rows);
    this.rowsBySize[size]! += rows;
    this.secondsBySize[size]! += seconds;
  }

  /** As the coordinator is told. */
  report() {
    const { rows, seconds, rowsBySize, secondsBySize } = this;
    return {
      rowsComputed: rows,
      computeSeconds: seconds,
      rowsBySize: [...rowsBySize],
      secondsBySize: [...secondsBySize],
    };
  }
}
