import { z } from 'zod';
import type { Family } from './family.js';
import { common, expertWidth, flag, orElse, swiglu } from './fields.js';
import { layouts, projections } from './layouts.js';
import { qwenLayerKeys, qwenLayers } from './qwen3-moe.js';
import { softmax } from './routers.js';

/** Norms multiply by 1 + weight. What is under `mtp` behind the layers is none of them. Qwen3.5 has no norm_topk_prob, and renormalises. */
export const qwen3Next: Family = {
  name: 'qwen3_next',
  types: ['qwen3_next', 'qwen3_5_moe'],
  config: z
    .object({
      ...common,
      ...qwenLayerKeys,
      moe_intermediate_size: expertWidth,
      shared_expert_intermediate_size: expertWidth,
      norm_topk_prob: orElse(flag, true),
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
  layouts: layouts({
    normOffset: 1,
    shared: projections('mlp.shared_expert'),
    sharedGate: 'mlp.shared_expert_gate.weight',
  }),
};

/** Residuals are hyper-connections. */
export const qwen4Exp: Family = {
  ...qwen3Next,
  name: 'qwen4_exp',
  types: ['qwen4_exp'],
  bare: true,
};
