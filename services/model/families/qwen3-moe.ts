import { z } from 'zod';
import { modelLimits, size } from '../limits.js';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, flag, swiglu } from './fields.js';
import { layouts } from './layouts.js';
import { softmax } from './routers.js';

/** By which Qwen says that some layers are dense. */
export const qwenLayerKeys = {
  decoder_sparse_step: size(modelLimits.layers).default(1),
  mlp_only_layers: z.array(z.int(), { error: 'a list of layer numbers' }).nullish(),
};

export function qwenLayers(config: {
  num_hidden_layers: number;
  decoder_sparse_step: number;
  mlp_only_layers?: number[] | null | undefined;
}): number[] {
  return allLayers(config.num_hidden_layers).filter(
    (layer) => !config.mlp_only_layers?.includes(layer) && (layer + 1) % config.decoder_sparse_step === 0,
  );
}

/** `renormalise`: how norm_topk_prob is read. */
export function qwen3MoeConfig(renormalise: z.ZodType<boolean>) {
  return z
    .object({ ...common, ...qwenLayerKeys, moe_intermediate_size: expertWidth, norm_topk_prob: renormalise })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: qwenLayers(config),
      routing: softmax(config.num_experts_per_tok, config.norm_topk_prob),
      expert: swiglu(config.moe_intermediate_size),
      shared: null,
      normEpsilon: config.rms_norm_eps,
    }));
}

export const qwen3Moe: Family = {
  name: 'qwen3_moe',
  types: ['qwen3_moe'],
  config: qwen3MoeConfig(flag),
  layouts: layouts({}),
};
