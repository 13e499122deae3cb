/** Rows per worker and layer, and how even they are. Workers without rows count too. */
export class WorkerLoad {
  private readonly layers = new Map<number, Map<string, number>>();

  /** Adds a chunk's rows per expert. `workerOf`: expert -> index into `workers`, the workers of the placement. */
  add(layer: number, rows: Uint32Array, workerOf: Uint32Array, workers: readonly string[]): void {
    let load = this.layers.get(layer);
    if (load === undefined) {
      load = new Map();
      this.layers.set(layer, load);
    }
    for (const worker of workers) if (!load.has(worker)) load.set(worker, 0);
    // Whoever holds no expert any more would count as an idle worker.
    if (load.size > workers.length)
      for (const worker of load.keys()) if (!workers.includes(worker)) load.delete(worker);
    for (let expert = 0; expert < rows.length; expert += 1) {
      const worker = workers[workerOf[expert]!];
      if (worker !== undefined) load.set(worker, load.get(worker)! + rows[expert]!);
    }
  }

  /** Makes what was added so far count `factor` as much. */
  decay(layer: number, factor: number): void {
    const load = this.layers.get(layer);
    if (load === undefined) return;
    for (const [worker, rows] of load) load.set(worker, rows * factor);
  }

  /** Mean/max of rows over workers of one layer: 1 is even, 1/workers is all on one. 1 without rows. */
  balancedness(layer: number): number {
    const rows = [...(this.layers.get(layer)?.values() ?? [])];
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
