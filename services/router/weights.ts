import type { GateWeights, Slab } from '../../native/index.js';
import type { ModelSpec } from '../model/spec.js';

export interface LayerWeights {
  gate: GateWeights;
  /** [hidden] BF16, and what is added to it; null: the layer has none. */
  norm: { weight: Slab; offset: number } | null;
  /** [hidden] BF16, of the norm of the block's output; null: there is none. */
  outputNorm: Slab | null;
}

/** The part of a model that a router computes with: gates and norms. */
export class RouterWeights {
  constructor(
    readonly spec: ModelSpec,
    private readonly layers: ReadonlyMap<number, LayerWeights>,
  ) {}

  layer(layer: number): LayerWeights {
    return this.layers.get(layer)!;
  }

  release(): void {
    for (const { gate, norm, outputNorm } of this.layers.values()) {
      gate.release();
      outputNorm?.release();
      norm?.weight.release();
    }
  }
}
