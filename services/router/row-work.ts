import { LiveSet } from '../common/live.js';
import type { OwnWork } from '../common/liveness.js';

/** A chunk at a layer. */
export interface RowPlace {
  batchId: string;
  chunk: number;
  layer: number;
}

/** The chunks whose rows the router itself has at hand. Those that wait for clients, workers or memory are not among them. */
export class RowWork implements OwnWork {
  readonly name = 'row operations';
  done = 0;
  private readonly places = new LiveSet<RowPlace>();

  underWay(): string | null {
    const oldest = this.places.first;
    if (oldest === undefined) return null;
    const { batchId, chunk, layer } = oldest;
    return `${this.places.size} under way, the oldest of batch ${batchId}, chunk ${chunk}, layer ${layer}`;
  }

  /** Counts an operation on rows as under way until it settles. */
  async on<T>(place: RowPlace, operation: Promise<T>): Promise<T> {
    this.places.add(place);
    try {
      return await operation;
    } finally {
      this.places.delete(place);
      this.done += 1;
    }
  }
}
