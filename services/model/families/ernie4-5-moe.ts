import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, countOrNone, expertWidth, orElse, sharedOf, swiglu } from './fields.js';
import { layouts, projections } from './layouts.js';
import { softmax } from './routers.js';

/** A bias to choose by beside a softmax. */
export const ernie45Moe: Family = {
  name: 'ernie4_5_moe',
  types: ['ernie4_5_moe'],
  config: z
    .object({
      ...common,
      moe_intermediate_size: expertWidth,
      n_shared_experts: orElse(countOrNone, 2),
      moe_layer_interval: orElse(z.int().min(1), 1),
      moe_layer_start_index: orElse(z.int(), 1),
      moe_layer_end_index: orElse(z.int(), -1),
    })
    .transform((config) => {
      const {
        moe_layer_start_index: start,
        moe_layer_end_index: last,
        moe_layer_interval: interval,
      } = config;
      const end = last === -1 ? config.num_hidden_layers - 1 : last;
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers: allLayers(config.num_hidden_layers).filter(
          (layer) => (layer + 1) % interval === 0 && layer >= start && layer <= end,
        ),
        routing: softmax(config.num_experts_per_tok, true),
        expert: swiglu(config.moe_intermediate_size),
        shared: sharedOf(swiglu(config.moe_intermediate_size * config.n_shared_experts)),
        normEpsilon: config.rms_norm_eps,
      };
    }),
  layouts: layouts({
    selectionBias: [
      'mlp.moe_statics.e_score_correction_bias',
      'mlp.gate.moe_statics.e_score_correction_bias',
    ],
    shared: projections('mlp.shared_experts'),
  }),
};
