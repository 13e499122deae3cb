import { type GateWeights, native, type Slab } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import { type Model, openModel, parseModelSource } from '../model/load.js';
import type { ModelSpec } from '../model/spec.js';

export interface LayerWeights {
  experts: number;
  gate: GateWeights;
  /** [hidden] BF16 */
  norm: Slab;
}

/** The part of a model that a router computes with: gates and norms. */
export class RouterWeights {
  private constructor(
    readonly spec: ModelSpec,
    private readonly layers: ReadonlyMap<number, LayerWeights>,
  ) {}

  /**
   * Loads what the coordinator's description names.
   * @throws MODEL_INVALID if it cannot be read here, MODEL_MISMATCH if it is another model than the cluster's.
   */
  static async load(description: ModelDescription): Promise<RouterWeights> {
    const model = await openModel(parseModelSource(description.source));
    try {
      if (model.spec.fingerprint !== description.fingerprint) {
        throw new SwitchyardError(
          'MODEL_MISMATCH',
          `the model that this router reads has fingerprint ${model.spec.fingerprint}; the cluster serves ${description.name}, ${description.fingerprint}`,
          { fingerprint: model.spec.fingerprint, allowed: description.fingerprint },
        );
      }
      const layers = new Map<number, LayerWeights>();
      for (const { layer, experts } of model.spec.layers) {
        layers.set(layer, await loadLayer(model, layer, experts));
      }
      return new RouterWeights(model.spec, layers);
    } finally {
      model.close();
    }
  }

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

async function loadLayer(model: Model, layer: number, experts: number): Promise<LayerWeights> {
  const { hidden, routing } = model.spec;
  const { weight: source, logitBias, selectionBias } = model.gate(layer);
  const weight = await native.readFloats(source);
  try {
    const gate = native.createGate({ weight, experts, hidden, logitBias, selectionBias, routing });
    return { experts, gate, norm: await native.readTensor(model.norm(layer)) };
  } finally {
    weight.release();
  }
}
