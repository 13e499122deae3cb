import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, countOrNone, expertWidth, flag, number, orElse, swiglu } from './fields.js';
import { layouts, numbered } from './layouts.js';
import { sigmoid } from './routers.js';

export const lfm2Moe: Family = {
  name: 'lfm2_moe',
  types: ['lfm2_moe'],
  config: z
    .object({
      ...common,
      moe_intermediate_size: expertWidth,
      num_dense_layers: orElse(countOrNone, 2),
      norm_topk_prob: orElse(flag, true),
      routed_scaling_factor: orElse(number, 1),
      use_expert_bias: orElse(flag, true),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers).slice(config.num_dense_layers),
      routing: sigmoid(config.num_experts_per_tok, config.norm_topk_prob, {
        scale: config.routed_scaling_factor,
      }),
      expert: swiglu(config.moe_intermediate_size),
      shared: null,
      selectionBias: config.use_expert_bias,
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({
    norm: ['ffn_norm.weight'],
    router: 'feed_forward.gate.weight',
    selectionBias: ['feed_forward.expert_bias', 'feed_forward.gate.expert_bias'],
    experts: numbered('feed_forward.experts.#'),
  }),
};
