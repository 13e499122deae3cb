import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, flag, swiglu } from './fields.js';
import { layouts } from './layouts.js';
import { softmax } from './routers.js';

/** `intermediate_size` is an expert's. */
export const olmoe: Family = {
  name: 'olmoe',
  types: ['olmoe'],
  config: z
    .object({
      ...common,
      intermediate_size: expertWidth,
      norm_topk_prob: flag,
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers),
      routing: softmax(config.num_experts_per_tok, config.norm_topk_prob),
      expert: swiglu(config.intermediate_size),
      shared: null,
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({}),
};
