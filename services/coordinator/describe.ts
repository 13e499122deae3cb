import type { ModelDescriptionInput } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { ModelSpec } from '../model/spec.js';

/** The model as nodes and clients are told of it. */
export function describeModel(spec: ModelSpec): ModelDescriptionInput {
  return {
    name: spec.name,
    family: spec.family,
    fingerprint: spec.fingerprint,
    hidden: spec.hidden,
    ffn: spec.ffn,
    activation: spec.activation === 'swiglu' ? 'SWIGLU' : 'GELU',
    routing: spec.routing,
    layers: spec.layers,
    normEpsilon: spec.normEpsilon,
    source: JSON.stringify(spec.source),
  };
}
