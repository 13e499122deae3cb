import { z } from 'zod';
import type { Family } from './family.js';
import {
  common,
  count,
  expertWidth,
  flag,
  layerKinds,
  number,
  orElse,
  sparseLayers,
  swiglu,
} from './fields.js';
import { layouts, projections } from './layouts.js';
import { softmax } from './routers.js';

/** Groups are chosen by their best expert, and only under `group_limited_greedy`. Its shared experts are one FFN. */
export const deepseekV2: Family = {
  name: 'deepseek_v2',
  types: ['deepseek_v2'],
  config: z
    .object({
      ...common,
      ...layerKinds,
      moe_intermediate_size: expertWidth,
      n_shared_experts: orElse(count, 2),
      topk_method: orElse(
        z.enum(['greedy', 'group_limited_greedy'], { error: '"greedy" or "group_limited_greedy"' }),
        'greedy',
      ),
      n_group: orElse(count, 1),
      topk_group: orElse(count, 1),
      norm_topk_prob: orElse(flag, false),
      routed_scaling_factor: orElse(number, 1),
    })
    .transform((config) => {
      const grouped = config.topk_method === 'group_limited_greedy';
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers: sparseLayers(config),
        // Transformers does not renormalise, whatever norm_topk_prob says.
        routing: softmax(config.num_experts_per_tok, false, {
          scale: config.routed_scaling_factor,
          groups: grouped ? config.n_group : 1,
          groupsChosen: grouped ? config.topk_group : 1,
          groupScore: 'max',
        }),
        expert: swiglu(config.moe_intermediate_size),
        shared: {
          ...swiglu(config.moe_intermediate_size * config.n_shared_experts),
          weight: 1,
          gated: false,
        },
        normEpsilon: config.rms_norm_eps,
      };
    }),
  layouts: layouts({ shared: projections('mlp.shared_experts') }),
};
