import type { ModelConfigInput } from '../../common/generated/inference/ModelConfig.js';
import type { ModelMetadataResponseInput } from '../../common/generated/inference/ModelMetadataResponse.js';
import { modelVersion, type ServedModel } from './models.js';
import { tensorsOf } from './tensors.js';

export const platform = 'switchyard';
/** What of the protocol's extensions there is. */
export const extensions = ['model_configuration', 'statistics', 'system_shared_memory', 'binary_tensor_data'];

export function describeMetadata(model: ServedModel, hidden: number): ModelMetadataResponseInput {
  const tensors = Object.values(tensorsOf(model, hidden)).map(({ name, datatype, tail }) => ({
    name,
    datatype,
    shape: [-1, ...tail],
  }));
  return { name: model.name, versions: [modelVersion], platform, inputs: tensors, outputs: tensors };
}

export function describeConfig(model: ServedModel, hidden: number): ModelConfigInput {
  const tensors = Object.values(tensorsOf(model, hidden)).map(({ name, datatype, tail, optional }) => ({
    name,
    dataType: `TYPE_${datatype}` as const,
    dims: [-1, ...tail],
    optional,
  }));
  return {
    name: model.name,
    platform,
    backend: platform,
    maxBatchSize: 0,
    input: tensors,
    output: tensors.map(({ name, dataType, dims }) => ({ name, dataType, dims })),
    modelTransactionPolicy: { decoupled: false },
  };
}
