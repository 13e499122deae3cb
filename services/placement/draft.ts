import type { Copies, PlanInput, PlanLayer } from './input.js';
import { insert, remove } from './sorted-list.js';

/** One expert, by the index of its layer. */
export interface ExpertIndex {
  layer: number;
  expert: number;
}

/** Where copies are while a plan is made, and what memory that leaves. */
export class Draft {
  /** [layers, experts] → workers, ascending. */
  readonly copies: number[][][];
  /** [workers] Bytes. */
  readonly free: Float64Array;

  /** Workers that may get copies. */
  readonly open: readonly number[];

  private readonly layers: readonly PlanLayer[];

  /** The present copies, even where they exceed the memory. */
  constructor({ workers, layers, present }: PlanInput) {
    this.layers = layers;
    this.open = [...workers.keys()].filter((worker) => !workers[worker]!.closed);
    this.copies = present.map((experts) => experts.map((holders) => [...holders]));
    this.free = Float64Array.from(workers, ({ memoryBytes }) => memoryBytes);
    for (const [layer, { expertBytes }] of layers.entries())
      for (const worker of this.copies[layer]!.flat()) this.free[worker]! -= expertBytes;
  }

  holders({ layer, expert }: ExpertIndex): readonly number[] {
    return this.copies[layer]![expert]!;
  }

  bytes({ layer }: ExpertIndex): number {
    return this.layers[layer]!.expertBytes;
  }

  /** The copies as they are now. */
  snapshot(): Copies {
    return this.copies.map((experts) => experts.map((holders) => [...holders]));
  }

  /** Whether every expert has the copies that it has there. */
  isAt(copies: Copies): boolean {
    return this.copies.every((experts, layer) =>
      experts.every((holders, expert) => {
        const others = copies[layer]![expert]!;
        return holders.length === others.length && holders.every((worker, at) => worker === others[at]);
      }),
    );
  }

  add(expert: ExpertIndex, worker: number): void {
    insert(this.copies[expert.layer]![expert.expert]!, worker);
    this.free[worker]! -= this.bytes(expert);
  }

  remove(expert: ExpertIndex, worker: number): void {
    remove(this.copies[expert.layer]![expert.expert]!, worker);
    this.free[worker]! += this.bytes(expert);
  }

  /** The least loaded first. */
  expertsAt(worker: number): ExpertIndex[] {
    const held = this.copies.flatMap((experts, layer) =>
      [...experts.keys()]
        .filter((expert) => experts[expert]!.includes(worker))
        .map((expert) => ({ layer, expert, load: this.layers[layer]!.loads[expert]! })),
    );
    return held.sort((a, b) => a.load - b.load);
  }
}
