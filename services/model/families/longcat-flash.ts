import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, countOrNone, expertWidth, number, orElse, swiglu } from './fields.js';
import { layouts } from './layouts.js';
import { softmax } from './routers.js';

/** The gate chooses among experts and as many more that give their rows back. A layer has two dense FFNs beside the block. */
export const longcatFlash: Family = {
  name: 'longcat_flash',
  types: ['longcat_flash'],
  bare: true,
  config: z
    .object({
      ...common,
      moe_intermediate_size: expertWidth,
      zero_expert_num: orElse(countOrNone, 0),
      zero_expert_type: z.literal('identity', { error: '"identity"' }).nullish(),
      routed_scaling_factor: orElse(number, 6),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts + config.zero_expert_num,
      identities: config.zero_expert_num,
      layers: allLayers(config.num_hidden_layers),
      routing: softmax(config.num_experts_per_tok, false, { scale: config.routed_scaling_factor }),
      expert: swiglu(config.moe_intermediate_size),
      shared: null,
      normEpsilon: 0,
    })),
  layouts: layouts({
    norm: [],
    router: 'mlp.router.classifier.weight',
    selectionBias: ['mlp.router.e_score_correction_bias'],
  }),
};
