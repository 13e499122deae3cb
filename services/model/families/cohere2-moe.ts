import { z } from 'zod';
import type { Family } from './family.js';
import {
  common,
  countOrNone,
  expertWidth,
  flag,
  layerKinds,
  orElse,
  sparseLayers,
  swiglu,
} from './fields.js';
import { layouts, projections } from './layouts.js';
import { sigmoid, softmax } from './routers.js';

/** Attention and block are side by side. Routed and shared are averaged, or added. `intermediate_size` is an expert's. */
export const cohere2Moe: Family = {
  name: 'cohere2_moe',
  types: ['cohere2_moe'],
  bare: true,
  config: z
    .object({
      ...common,
      ...layerKinds,
      rms_norm_eps: z.unknown().optional(),
      intermediate_size: expertWidth,
      n_shared_experts: orElse(countOrNone, 0),
      norm_topk_prob: orElse(flag, true),
      expert_selection_fn: orElse(
        z.enum(['softmax', 'sigmoid'], { error: '"softmax" or "sigmoid"' }),
        'softmax',
      ),
      shared_expert_combination_strategy: orElse(
        z.enum(['average', 'sum'], { error: '"average" or "sum"' }),
        'average',
      ),
    })
    .transform((config) => {
      const { num_experts_per_tok: topK, n_shared_experts: shared, intermediate_size: ffn } = config;
      const weight = shared > 0 && config.shared_expert_combination_strategy === 'average' ? 0.5 : 1;
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers: sparseLayers(config),
        routing:
          config.expert_selection_fn === 'softmax'
            ? softmax(topK, true, { scale: weight })
            : sigmoid(topK, config.norm_topk_prob, { scale: weight }),
        expert: swiglu(ffn),
        shared: shared === 0 ? null : { ...swiglu(ffn * shared), weight, gated: false },
        normEpsilon: 0,
      };
    }),
  layouts: layouts({ norm: [], shared: projections('mlp.shared_experts') }),
};
