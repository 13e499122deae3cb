import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, count, countOrNone, expertWidth, orElse, swiglu } from './fields.js';
import { layouts, projections } from './layouts.js';
import { softmax } from './routers.js';

/** Weights are not renormalised. `intermediate_size` is an expert's. */
export const jamba: Family = {
  name: 'jamba',
  types: ['jamba'],
  config: z
    .object({
      ...common,
      intermediate_size: expertWidth,
      expert_layer_period: orElse(count, 2),
      expert_layer_offset: orElse(countOrNone, 1),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers).filter(
        (layer) => layer % config.expert_layer_period === config.expert_layer_offset,
      ),
      routing: softmax(config.num_experts_per_tok, false),
      expert: swiglu(config.intermediate_size),
      shared: null,
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({
    norm: ['pre_ff_layernorm.weight'],
    router: 'feed_forward.router.weight',
    experts: projections('feed_forward.experts.#'),
  }),
};
