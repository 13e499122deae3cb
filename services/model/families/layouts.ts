import type { FusedNames, LayerNames, MatrixNames } from './family.js';

/** gate_proj, up_proj, down_proj, as most families name them. */
export function projections(path: string): MatrixNames {
  return {
    kind: 'separate',
    gate: `${path}.gate_proj.weight`,
    up: `${path}.up_proj.weight`,
    down: `${path}.down_proj.weight`,
  };
}

/** w1 is the gate, w3 is up, w2 is down. */
export function numbered(path: string): MatrixNames {
  return { kind: 'separate', gate: `${path}.w1.weight`, up: `${path}.w3.weight`, down: `${path}.w2.weight` };
}

/** All experts in two tensors, as transformers holds them in memory. */
export function fused(path: string, form: Partial<FusedNames> = {}): FusedNames {
  return {
    kind: 'fused',
    gateUp: `${path}.gate_up_proj`,
    down: `${path}.down_proj`,
    transposed: false,
    interleaved: false,
    ...form,
  };
}

const plain: LayerNames = {
  norm: ['post_attention_layernorm.weight'],
  normOffset: 0,
  outputNorm: [],
  router: 'mlp.gate.weight',
  routerTransposed: false,
  routerBias: null,
  routerScale: null,
  expertScale: null,
  selectionBias: [],
  selectionBiasRows: 1,
  tokenExperts: null,
  experts: projections('mlp.experts.#'),
  latent: null,
  shared: null,
  sharedGate: null,
  outputBias: null,
};

/** How one export names things, where it differs from most; and the same with fused experts, as transformers may save every family. */
export function layouts(...forms: readonly Partial<LayerNames>[]): LayerNames[] {
  const named = forms.map((form) => ({ ...plain, ...form }));
  const inMemory = named.map((names) => ({
    ...names,
    experts: fused(names.experts.down.replace(/\.#.*|\.[^.]*(\.weight)?$/, '')),
  }));
  const isFused = ({ experts }: LayerNames) => experts.kind === 'fused';
  return [...named, ...inMemory.filter((_, index) => !isFused(named[index]!))];
}
