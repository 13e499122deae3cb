import { z } from 'zod';
import type { Family } from './family.js';
import { common, expertWidth, flag, swiglu } from './fields.js';
import { layouts, projections } from './layouts.js';
import { qwenLayerKeys, qwenLayers } from './qwen3-moe.js';
import { softmax } from './routers.js';

export const qwen2Moe: Family = {
  name: 'qwen2_moe',
  types: ['qwen2_moe'],
  config: z
    .object({
      ...common,
      ...qwenLayerKeys,
      moe_intermediate_size: expertWidth,
      shared_expert_intermediate_size: expertWidth,
      norm_topk_prob: flag,
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: qwenLayers(config),
      routing: softmax(config.num_experts_per_tok, config.norm_topk_prob),
      expert: swiglu(config.moe_intermediate_size),
      shared: { ...swiglu(config.shared_expert_intermediate_size), weight: 1, gated: true },
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({ shared: projections('mlp.shared_expert'), sharedGate: 'mlp.shared_expert_gate.weight' }),
};
