import type { GluForm } from '../../native/index.js';
import type { FfnModelInput } from '../common/generated/switchyard/v1/FfnModel.js';
import type { GluModelInput } from '../common/generated/switchyard/v1/GluModel.js';
import type { LayerModelInput } from '../common/generated/switchyard/v1/LayerModel.js';
import type { ModelDescriptionInput } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { FfnSpec, LayerSpec, ModelSpec } from '../model/spec.js';

const activations = { swiglu: 'SWIGLU', geglu: 'GEGLU', gelu: 'GELU', relu2: 'RELU2' } as const;

function describeLayer({ expert, isolated, shared, ...others }: LayerSpec): LayerModelInput {
  return {
    ...others,
    givenOnly: others.vocabulary > 0,
    expert: describeFfn(expert),
    isolated: isolated && { ...isolated, expert: describeFfn(isolated.expert) },
    shared: shared.map(({ weight, gated, ...ffn }) => ({ ffn: describeFfn(ffn), weight, gated })),
  };
}

function describeFfn({ ffn, activation, glu, biased, latent = 0 }: FfnSpec): FfnModelInput {
  return { ffn, activation: activations[activation], glu: glu && describeGlu(glu), biased, latent };
}

function describeGlu({ alpha, gateMax, activationMax, upMax, upOffset }: GluForm): GluModelInput {
  const bound = (value: number | null) => value ?? Number.POSITIVE_INFINITY;
  return {
    alpha,
    gateMax: bound(gateMax),
    activationMax: bound(activationMax),
    upMax: bound(upMax),
    upOffset,
  };
}

/** The model as nodes and clients are told of it. */
export function describeModel(spec: ModelSpec): ModelDescriptionInput {
  const first = spec.layers[0]!;
  return {
    name: spec.name,
    family: spec.family,
    fingerprint: spec.fingerprint,
    hidden: spec.hidden,
    ffn: first.expert.ffn,
    activation: activations[first.expert.activation],
    routing: first.routing,
    layers: spec.layers.map(describeLayer),
    expertBytes: spec.expertBytes,
    bare: spec.bare,
    normEpsilon: spec.normEpsilon,
    source: JSON.stringify(spec.source),
  };
}
