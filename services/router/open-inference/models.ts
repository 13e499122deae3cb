import { SwitchyardError } from '../../common/errors.js';
import { type LayerSpec, type ModelSpec, type TokenIdsUse, tokenIdsUseOf } from '../../model/spec.js';

/** A model as clients of the Open Inference Protocol name it: layers of the cluster's, or the bare block of one. */
export interface ServedModel {
  name: string;
  /** Those with experts, ascending. */
  layers: LayerSpec[];
  /** Without norm and residual. */
  bare: boolean;
  /** What the ids of tokens are to the layers; null: nothing. */
  tokenIds: TokenIdsUse | null;
  /** What routing of a token is: [layers, topK], or of one layer [topK]. */
  routingShape: number[];
}

/** There is one of each model. */
export const modelVersion = '1';

/** NAME: all layers in a row; NAME.layer.N: one; NAME.moe.N: its bare block, which is all that some families have. */
export function servedModels({ name, layers, topK, bare }: ModelSpec): ServedModel[] {
  const single = (kind: 'layer' | 'moe') =>
    layers.map((spec) => ({
      name: `${name}.${kind}.${spec.layer}`,
      layers: [spec],
      bare: kind === 'moe',
      tokenIds: tokenIdsUseOf([spec]),
      routingShape: [topK],
    }));
  if (bare) return single('moe');
  const routingShape = [layers.length, topK];
  const whole = { name, layers, bare: false, tokenIds: tokenIdsUseOf(layers), routingShape };
  return [whole, ...single('layer'), ...single('moe')];
}

/** @throws NOT_FOUND, saying which there are. */
export function findModel(spec: ModelSpec, name: string, version: string): ServedModel {
  const found = servedModels(spec).find((model) => model.name === name);
  if (found === undefined) {
    const layers = spec.layers.map(({ layer }) => layer).join(', ');
    const whole = spec.bare ? '' : `${spec.name}, ${spec.name}.layer.N, `;
    throw notFound('model name', name, `${whole}${spec.name}.moe.N with N of ${layers}`);
  }
  if (version !== '' && version !== modelVersion) {
    throw notFound('model version', version, `${modelVersion}, or none`);
  }
  return found;
}

export function notFound(field: string, value: string, allowed: string): SwitchyardError {
  const shown = JSON.stringify(value.slice(0, 200));
  return new SwitchyardError('NOT_FOUND', `${field} is ${shown}; allowed: ${allowed}`, {
    field,
    value: shown,
    allowed,
  });
}
