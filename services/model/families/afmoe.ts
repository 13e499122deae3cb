import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, countOrNone, expertWidth, number, orElse, sharedOf, swiglu } from './fields.js';
import { layouts, projections } from './layouts.js';
import { sigmoid } from './routers.js';

/** Norms stand behind the block too. */
export const afmoe: Family = {
  name: 'afmoe',
  types: ['afmoe'],
  bare: true,
  config: z
    .object({
      ...common,
      moe_intermediate_size: expertWidth,
      n_shared_experts: orElse(countOrNone, 0),
      num_dense_layers: orElse(countOrNone, 1),
      routed_scaling_factor: orElse(number, 1),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers).slice(config.num_dense_layers),
      routing: sigmoid(config.num_experts_per_tok, true, { scale: config.routed_scaling_factor }),
      expert: swiglu(config.moe_intermediate_size),
      shared: sharedOf(swiglu(config.moe_intermediate_size * config.n_shared_experts)),
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({
    router: 'mlp.router.gate.weight',
    selectionBias: ['mlp.expert_bias'],
    shared: projections('mlp.shared_experts'),
  }),
};
