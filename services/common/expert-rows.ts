/** Rows per expert of each layer, summed in typed arrays: a model may have tens of thousands of experts. */
export class ExpertRows {
  private readonly byLayer = new Map<number, Float64Array>();

  /** Adds the rows of every expert of a layer, and returns how many that were. */
  add(layer: number, rows: Uint32Array): number {
    let sums = this.byLayer.get(layer);
    if (sums === undefined) {
      sums = new Float64Array(rows.length);
      this.byLayer.set(layer, sums);
    }
    let added = 0;
    for (let expert = 0; expert < rows.length; expert += 1) {
      sums[expert]! += rows[expert]!;
      added += rows[expert]!;
    }
    return added;
  }

  /** The layers to which something was added, with their sums by expert. */
  layers(): IterableIterator<[layer: number, sums: Float64Array]> {
    return this.byLayer.entries();
  }

  of(layer: number): Float64Array | undefined {
    return this.byLayer.get(layer);
  }

  clear(): void {
    this.byLayer.clear();
  }
}
