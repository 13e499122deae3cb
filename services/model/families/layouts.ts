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

/** All experts of a matrix in one tensor, without a gate. */
function ungated(path: string): MatrixNames {
  return { kind: 'separate', gate: null, up: `${path}.up_proj`, down: `${path}.down_proj` };
}

/** As transformers holds experts in memory, by how they are saved. */
function inMemory(experts: MatrixNames): MatrixNames | FusedNames {
  const path = experts.down.replace(/\.#.*|\.[^.]*(\.weight)?$/, '');
  return experts.gate === null ? ungated(path) : fused(path);
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
  tokenExperts: null,
  experts: projections('mlp.experts.#'),
  isolated: null,
  latent: null,
  shared: null,
  sharedGate: null,
  outputBias: null,
};

/**
 * How one export names things, where it differs from most; and the same with fused experts, as transformers may save every family, but for
 * those whose isolated experts are numbered with the others: fused they lie apart.
 */
export function layouts(...forms: readonly Partial<LayerNames>[]): LayerNames[] {
  const named = forms.map((form) => ({ ...plain, ...form }));
  const fusible = named.flatMap((names) =>
    names.experts.kind === 'fused' || names.isolated !== null
      ? []
      : [{ ...names, experts: inMemory(names.experts) }],
  );
  return [...named, ...fusible];
}
