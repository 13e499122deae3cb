import { z } from 'zod';
import { deepseekV3, v3Keys } from './deepseek-v3.js';
import type { Family } from './family.js';
import { expertWidth, orElse, sharedOf, sparseLayers, swiglu } from './fields.js';
import { sigmoidGroups } from './routers.js';

/** DeepSeek-V3's block, whose shared experts have a width of their own. */
export const dots3Note: Family = {
  ...deepseekV3,
  name: 'dots3_note',
  types: ['dots3_note'],
  config: z
    .object({
      ...v3Keys,
      first_k_dense_replace: orElse(z.int().min(0, 'an integer of at least 0'), 1),
      shared_experts_intermediate_size: orElse(expertWidth, 1536),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: sparseLayers(config),
      routing: sigmoidGroups(config),
      expert: swiglu(config.moe_intermediate_size),
      shared: sharedOf(swiglu(config.shared_experts_intermediate_size * config.n_shared_experts)),
      normEpsilon: config.rms_norm_eps,
    })),
};
