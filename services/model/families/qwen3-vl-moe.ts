import { z } from 'zod';
import type { Family } from './family.js';
import { common, expertWidth, swiglu } from './fields.js';
import { fused, layouts } from './layouts.js';
import { qwenLayerKeys, qwenLayers } from './qwen3-moe.js';
import { softmax } from './routers.js';

/** It always renormalises. The fused tensors of the publisher are transposed, those of transformers are not, under the same names. */
export const qwen3VlMoe: Family = {
  name: 'qwen3_vl_moe',
  types: ['qwen3_vl_moe'],
  config: z
    .object({ ...common, ...qwenLayerKeys, moe_intermediate_size: expertWidth })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: qwenLayers(config),
      routing: softmax(config.num_experts_per_tok, true),
      expert: swiglu(config.moe_intermediate_size),
      shared: null,
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({ experts: fused('mlp.experts', { transposed: 'either' }) }, {}),
};
