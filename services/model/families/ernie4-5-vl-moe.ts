import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, countOrNone, epsilon, expertWidth, orElse, sharedOf, swiglu } from './fields.js';
import { fused, layouts, projections } from './layouts.js';
import { softmax } from './routers.js';

/** One value, or one for text and one for images, of which the first counts. */
function ofText<T>(schema: z.ZodType<T>) {
  return z.preprocess((value) => (Array.isArray(value) && value.length > 0 ? value[0] : value), schema);
}

/**
 * Tokens of text and of images have routers and experts of their own; what is served is the text's. The publisher's tensors hold those of text
 * first, and their routers as [hidden, experts].
 */
export const ernie45VlMoe: Family = {
  name: 'ernie4_5_vl_moe',
  types: ['ernie4_5_vl_moe', 'ernie4_5_moe_vl'],
  config: z
    .object({
      ...common,
      num_experts: ofText(common.num_experts),
      moe_intermediate_size: ofText(expertWidth),
      n_shared_experts: orElse(countOrNone, 2),
      mlp_layer_types: z.array(z.string(), { error: 'a list of "dense" and "sparse"' }).nullish(),
      moe_layer_interval: orElse(z.int().min(1), 1),
      moe_layer_start_index: orElse(ofText(z.int()), 1),
      moe_layer_end_index: orElse(ofText(z.int()), -1),
      rms_norm_eps: epsilon.default(1e-5),
    })
    .transform((config) => {
      const { mlp_layer_types: types, moe_layer_start_index: start, moe_layer_interval: interval } = config;
      const last = config.moe_layer_end_index;
      const end = last === -1 ? config.num_hidden_layers - 1 : last;
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers: allLayers(config.num_hidden_layers).filter((layer) =>
          types ? types[layer] === 'sparse' : (layer + 1) % interval === 0 && layer >= start && layer <= end,
        ),
        routing: softmax(config.num_experts_per_tok, true),
        expert: swiglu(config.moe_intermediate_size),
        shared: sharedOf(swiglu(config.moe_intermediate_size * config.n_shared_experts)),
        normEpsilon: config.rms_norm_eps,
      };
    }),
  layouts: layouts(
    {
      routerTransposed: true,
      selectionBias: ['mlp.moe_statics.e_score_correction_bias'],
      selectionBiasRows: 2,
      shared: projections('mlp.shared_experts'),
    },
    {
      router: 'mlp.text_moe.gate.weight',
      selectionBias: ['mlp.text_moe.gate.moe_statics.e_score_correction_bias'],
      experts: fused('mlp.text_moe.experts'),
      shared: projections('mlp.shared_experts'),
    },
  ),
};
