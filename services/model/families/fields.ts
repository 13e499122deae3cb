import { z } from 'zod';
import { modelLimits, size } from '../limits.js';
import type { FfnSpec } from '../spec.js';
import type { SharedSpec } from './family.js';

/**
 * What publishers and transformers call the same thing in config.json, by the name that the families here use. A value under a name of
 * its own counts before one under another.
 */
const names: Readonly<Record<string, readonly string[]>> = {
  num_experts: ['n_routed_experts', 'num_local_experts', 'moe_num_experts'],
  num_experts_per_tok: ['num_experts_per_token', 'moe_k', 'moe_topk', 'moe_top_k', 'top_k_experts'],
  moe_intermediate_size: ['expert_ffn_hidden_size'],
  hidden_size: ['d_model'],
  num_hidden_layers: ['num_layers', 'n_layers'],
  n_group: ['num_expert_group'],
  n_shared_experts: ['num_shared_experts', 'moe_num_shared_experts', 'num_shared_expert'],
  norm_topk_prob: ['moe_renormalize', 'route_norm'],
  routed_scaling_factor: ['router_scaling_factor', 'route_scale', 'moe_router_scaling_factor'],
  shared_experts_intermediate_size: ['moe_shared_expert_intermediate_size'],
  rms_norm_eps: ['layer_norm_epsilon', 'layernorm_epsilon', 'norm_eps'],
  share_expert_dim: ['share_expert_dims'],
  layers_block_type: ['layer_types'],
  image_token_id: ['im_patch_id'],
};

/** `config` with the names that families use, and by those the names that it had. */
export function canonicalKeys(config: Record<string, unknown>) {
  const given: Record<string, string> = {};
  const keys = { ...config };
  for (const [name, others] of Object.entries(names)) {
    const there = [name, ...others].filter((key) => config[key] !== undefined);
    const found = there.find((key) => config[key] !== null) ?? there[0];
    if (found === undefined || found === name) continue;
    keys[name] = config[found];
    given[name] = found;
  }
  return { keys, given };
}

export const flag = z.boolean({ error: 'true or false' });
export const number = z.number({ error: 'a number' });
export const count = z.int({ error: 'an integer of at least 1' }).min(1, 'an integer of at least 1');
export const countOrNone = z.int({ error: 'an integer of at least 0' }).min(0, 'an integer of at least 0');
export const epsilon = z
  .number({ error: 'a number from 0 to 1' })
  .min(0, 'a number from 0 to 1')
  .max(1, 'a number from 0 to 1');
/** Families whose activation is another would compute something else in silence. */
export const silu = z.literal('silu', { error: '"silu"' }).default('silu');
/** What is null, or not there and none of defaults.ts. */
export function orElse<T>(schema: z.ZodType<T>, otherwise: T) {
  return schema.nullish().transform((value) => value ?? otherwise);
}
/** A value for every layer, all of them the same, or one for all. */
export function uniform(max: number) {
  const one = size(max);
  const error = `an integer from 1 to ${max}, or a list of equal ones`;
  const equal = (values: number[]) => new Set(values).size === 1;
  return z
    .union([one, z.array(one).min(1).refine(equal, { error })], { error })
    .transform((value) => (Array.isArray(value) ? value[0]! : value));
}

/** Neurons of an expert. */
export const expertWidth = uniform(modelLimits.ffn);

/** What all families say. */
export const common = {
  hidden_size: size(modelLimits.hidden),
  num_hidden_layers: size(modelLimits.layers),
  num_experts: uniform(modelLimits.experts),
  num_experts_per_tok: uniform(modelLimits.topK),
  rms_norm_eps: epsilon,
  hidden_act: silu,
};

export const swiglu = (ffn: number): FfnSpec => ({ ffn, activation: 'swiglu', glu: null, biased: false });

/** Shared experts that are added as they are; none of no neurons. */
export function sharedOf(ffn: FfnSpec): SharedSpec | null {
  return ffn.ffn === 0 ? null : { ...ffn, weight: 1, gated: false };
}

export function allLayers(count: number): number[] {
  return Array.from({ length: count }, (_, layer) => layer);
}

/** Words for what layers are, one for each; `kindForEach` checks that. */
export function kindsOf(...kinds: string[]) {
  const error = `a list of ${kinds.map((kind) => `"${kind}"`).join(' and ')}`;
  return z.array(z.enum(kinds, { error }), { error }).nullish();
}

/** Of all families: layers without a word would be of one kind or another by chance. */
export const kindForEach = z
  .object({
    num_hidden_layers: z.unknown().optional(),
    mlp_layer_types: z.array(z.unknown()).nullish().catch(null),
  })
  .superRefine(({ num_hidden_layers: layers, mlp_layer_types: kinds }, context) => {
    if (!kinds || typeof layers !== 'number' || kinds.length >= layers) return;
    const message = `a list of at least ${layers} entries, one for each of num_hidden_layers`;
    context.addIssue({ code: 'custom', path: ['mlp_layer_types'], message });
  });

/** Which layers have experts: a type for every layer, or the first so many are dense. */
export const layerKinds = {
  mlp_layer_types: kindsOf('dense', 'sparse'),
  first_k_dense_replace: orElse(z.int().min(0, 'an integer of at least 0'), 0),
  moe_layer_freq: z
    .union([z.int().min(1), z.array(z.int().min(0).max(1))], {
      error: 'an integer of at least 1, or a list of 0 and 1',
    })
    .nullish(),
};

export function sparseLayers(config: {
  num_hidden_layers: number;
  mlp_layer_types?: string[] | null | undefined;
  first_k_dense_replace: number;
  moe_layer_freq?: number | number[] | null | undefined;
}): number[] {
  const { mlp_layer_types: types, first_k_dense_replace: dense, moe_layer_freq: frequency } = config;
  return allLayers(config.num_hidden_layers).filter((layer) => {
    if (types) return types[layer] === 'sparse';
    if (Array.isArray(frequency)) return frequency[layer] === 1;
    return layer >= dense && layer % (frequency ?? 1) === 0;
  });
}
