import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, orElse, swiglu } from './fields.js';
import { fused, layouts, projections } from './layouts.js';
import { sigmoid } from './routers.js';

/** The weight multiplies what goes into an expert. `intermediate_size` is an expert's, and the shared one's. */
export const llama4: Family = {
  name: 'llama4',
  types: ['llama4'],
  config: z
    .object({
      ...common,
      num_experts_per_tok: orElse(common.num_experts_per_tok, 1),
      intermediate_size: expertWidth,
      interleave_moe_layer_step: orElse(z.int().min(1), 1),
      moe_layers: z.array(z.int(), { error: 'a list of layer numbers' }).nullish(),
    })
    .transform((config) => {
      const step = config.interleave_moe_layer_step;
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers: allLayers(config.num_hidden_layers).filter(
          (layer) => config.moe_layers?.includes(layer) ?? (layer + 1) % step === 0,
        ),
        routing: sigmoid(config.num_experts_per_tok, false, { weightOn: 'input' }),
        expert: swiglu(config.intermediate_size),
        shared: { ...swiglu(config.intermediate_size), weight: 1, gated: false },
        normEpsilon: config.rms_norm_eps,
      };
    }),
  // The publisher's own tensors have all experts in two; tools that quantise take them apart.
  layouts: layouts(
    ...[fused('feed_forward.experts', { transposed: true }), projections('feed_forward.experts.#')].map(
      (experts) => ({
        router: 'feed_forward.router.weight',
        experts,
        shared: projections('feed_forward.shared_expert'),
      }),
    ),
  ),
};
