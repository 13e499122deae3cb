import { native, type Slab, type TensorSource } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { Logger } from '../common/log.js';
import { countNonFiniteBf16, countNonFiniteFloats, FiniteWeights } from '../model/finite.js';
import { createGate } from '../model/gate.js';
import { type Model, openModel, parseModelSource } from '../model/load.js';
import type { LayerSpec } from '../model/spec.js';
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
    for (const spec of model.spec.layers) layers.set(spec.layer, await loadLayer(model, finite, spec));
    return new RouterWeights(model.spec, layers);
  } finally {
    model.close();
  }
}

async function loadLayer(model: Model, finite: FiniteWeights, spec: LayerSpec): Promise<LayerWeights> {
  const { layer } = spec;
  const source = model.gate(layer);
  const weight = await loadFloats(source.weight, finite);
  const isolated = source.isolated && (await loadFloats(source.isolated.weight, finite));
  const sharedGate = source.sharedGate && (await loadFloats(source.sharedGate, finite));
  try {
    const gate = await createGate(source, spec, model.spec.hidden, { weight, isolated, sharedGate });
    const norm = model.norm(layer);
    const outputNorm = model.outputNorm(layer);
    return {
      gate,
      norm: norm && { weight: await loadNorm(norm.weight, finite), offset: norm.offset },
      outputNorm: outputNorm && (await loadNorm(outputNorm, finite)),
    };
  } finally {
    weight.release();
    isolated?.release();
    sharedGate?.release();
  }
}

async function loadFloats(source: TensorSource, finite: FiniteWeights): Promise<Slab> {
  const values = await native.readFloats(source);
  try {
    finite.check(source, countNonFiniteFloats(values));
    return values;
  } catch (error) {
    values.release();
    throw error;
  }
}

async function loadNorm(source: TensorSource, finite: FiniteWeights): Promise<Slab> {
  const norm = await native.readTensor(source);
  try {
    finite.check(source, countNonFiniteBf16(norm));
    return norm;
  } catch (error) {
    norm.release();
    throw error;
  }
}
