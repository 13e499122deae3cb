import type { ModelConfigInput } from '../../common/generated/inference/ModelConfig.js';
import type { ModelMetadataResponseInput } from '../../common/generated/inference/ModelMetadataResponse.js';
import { modelVersion, type ServedModel } from './models.js';
import { type TensorSpec, tensorsOf } from './tensors.js';

export const platform = 'switchyard';
/** What of the protocol's extensions there is. */
export const extensions = ['model_configuration', 'statistics', 'system_shared_memory', 'binary_tensor_data'];

/**
 * The inputs that a request needs, and the ids of tokens, without which some go to the experts of others. Metadata cannot say that an
 * input may be left out, and clients that generate requests give all that they find: so routing is left out here.
 */
function tensors(model: ServedModel, hidden: number): { inputs: TensorSpec[]; outputs: TensorSpec[] } {
  const all = Object.values(tensorsOf(model, hidden));
  return {
    inputs: all.filter(({ described }) => described),
    outputs: all.filter(({ answered }) => answered),
  };
}

export function describeMetadata(model: ServedModel, hidden: number): ModelMetadataResponseInput {
  const { inputs, outputs } = tensors(model, hidden);
  const describe = ({ name, datatype, tail }: TensorSpec) => ({ name, datatype, shape: [-1, ...tail] });
  return {
    name: model.name,
    versions: [modelVersion],
    platform,
    inputs: inputs.map(describe),
    outputs: outputs.map(describe),
  };
}

export function describeConfig(model: ServedModel, hidden: number): ModelConfigInput {
  const { inputs, outputs } = tensors(model, hidden);
  const describe = ({ name, datatype, tail }: TensorSpec) => ({
    name,
    dataType: `TYPE_${datatype}` as const,
    dims: [-1, ...tail],
  });
  const describeInput = (tensor: TensorSpec) => ({ ...describe(tensor), optional: tensor.optional });
  return {
    name: model.name,
    platform,
    backend: platform,
    maxBatchSize: 0,
    input: inputs.map(describeInput),
    output: outputs.map(describe),
    modelTransactionPolicy: { decoupled: false },
  };
}
