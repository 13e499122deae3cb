import type { GateWeights, Slab } from '../../native/index.js';
import type { ModelSpec } from '../model/spec.js';

export interface LayerWeights {
  experts: number;
  gate: GateWeights;
  /** [hidden] BF16 */
  norm: Slab;
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
    for (const { gate, norm } of this.layers.values()) {
      gate.release();
      norm.release();
    }
  }
}
