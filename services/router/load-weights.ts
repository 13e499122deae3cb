import { native, type Slab } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { Logger } from '../common/log.js';
import { countNonFiniteBf16, countNonFiniteFloats, FiniteWeights } from '../model/finite.js';
import { type Model, openModel, parseModelSource } from '../model/load.js';
import { type LayerWeights, RouterWeights } from './weights.js';

/**
 * Loads what the coordinator's description names.
 * @throws MODEL_INVALID if it cannot be read here, MODEL_MISMATCH if it is another model than the cluster's.
 */
export async function loadWeights(description: ModelDescription, log: Logger): Promise<RouterWeights> {
  const source = parseModelSource(description.source);
  const finite = new FiniteWeights(source, log);
  const model = await openModel(source, log);
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
      layers.set(layer, await loadLayer(model, finite, layer, experts));
    }
    return new RouterWeights(model.spec, layers);
  } finally {
    model.close();
  }
}

async function loadLayer(
  model: Model,
  finite: FiniteWeights,
  layer: number,
  experts: number,
): Promise<LayerWeights> {
  const { hidden, routing } = model.spec;
  const { weight: source, logitBias, selectionBias } = model.gate(layer);
  const weight = await native.readFloats(source);
  try {
    finite.check(source, countNonFiniteFloats(weight));
    const gate = native.createGate({ weight, experts, hidden, logitBias, selectionBias, routing });
    return { experts, gate, norm: await loadNorm(model, finite, layer) };
  } finally {
    weight.release();
  }
}

async function loadNorm(model: Model, finite: FiniteWeights, layer: number): Promise<Slab> {
  const source = model.norm(layer);
  const norm = await native.readTensor(source);
  try {
    finite.check(source, countNonFiniteBf16(norm));
    return norm;
  } catch (error) {
    norm.release();
    throw error;
  }
}
