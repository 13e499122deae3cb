import { z } from 'zod';
import type { Family } from './family.js';
import { common, expertWidth, flag, layerKinds, orElse, sparseLayers, swiglu } from './fields.js';
import { layouts } from './layouts.js';
import { softmax } from './routers.js';

/** A layer in the middle may be dense. */
export const mellum: Family = {
  name: 'mellum',
  types: ['mellum'],
  config: z
    .object({
      ...common,
      ...layerKinds,
      moe_intermediate_size: expertWidth,
      norm_topk_prob: orElse(flag, true),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: sparseLayers(config),
      routing: softmax(config.num_experts_per_tok, config.norm_topk_prob),
      expert: swiglu(config.moe_intermediate_size),
      shared: null,
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({}),
};
