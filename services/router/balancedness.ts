/** Rows of one layer by worker. */
export interface RowsByWorker {
  workers: readonly string[];
  /** [workers] */
  rows: Float64Array;
}

/** Rows per worker and layer, and how even they are. Workers without rows count too. */
export class WorkerLoad {
  private readonly layers = new Map<number, RowsByWorker>();

  /**
   * Adds what workers got of a chunk. What was counted for other workers than these, which are those of a placement, is forgotten:
   * whoever holds no expert any more would count as an idle one.
   */
  add(layer: number, { workers, rows }: RowsByWorker): void {
    let load = this.layers.get(layer);
    if (load?.workers !== workers) {
      load = { workers, rows: new Float64Array(workers.length) };
      this.layers.set(layer, load);
    }
    for (let worker = 0; worker < rows.length; worker += 1) load.rows[worker]! += rows[worker]!;
  }

  /** Makes what was added so far count `factor` as much. */
  decay(layer: number, factor: number): void {
    const rows = this.layers.get(layer)?.rows;
    if (rows === undefined) return;
    for (let worker = 0; worker < rows.length; worker += 1) rows[worker]! *= factor;
  }

  /** Mean/max of rows over workers of one layer: 1 is even, 1/workers is all on one. 1 without rows. */
  balancedness(layer: number): number {
    const rows = this.layers.get(layer)?.rows ?? new Float64Array();
    const most = Math.max(0, ...rows);
    if (most === 0) return 1;
    return rows.reduce((sum, value) => sum + value, 0) / rows.length / most;
  }

  /** The average over the layers. */
  average(): number {
    const layers = [...this.layers.keys()];
    if (layers.length === 0) return 1;
    return layers.reduce((sum, layer) => sum + this.balancedness(layer), 0) / layers.length;
  }
}
