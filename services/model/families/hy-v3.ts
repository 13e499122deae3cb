import { z } from 'zod';
import type { Family } from './family.js';
import {
  common,
  countOrNone,
  expertWidth,
  layerKinds,
  number,
  orElse,
  sharedOf,
  sparseLayers,
  swiglu,
} from './fields.js';
import { fused, layouts, projections } from './layouts.js';
import { sigmoid } from './routers.js';

export const hyV3: Family = {
  name: 'hy_v3',
  types: ['hy_v3'],
  config: z
    .object({
      ...common,
      ...layerKinds,
      moe_intermediate_size: expertWidth,
      n_shared_experts: orElse(countOrNone, 1),
      routed_scaling_factor: orElse(number, 1),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: sparseLayers(config),
      routing: sigmoid(config.num_experts_per_tok, true, { scale: config.routed_scaling_factor }),
      expert: swiglu(config.moe_intermediate_size),
      shared: sharedOf(swiglu(config.moe_intermediate_size * config.n_shared_experts)),
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts(
    {
      router: 'mlp.router.gate.weight',
      selectionBias: ['mlp.expert_bias', 'mlp.e_score_correction_bias'],
      shared: projections('mlp.shared_mlp'),
    },
    {
      selectionBias: ['mlp.e_score_correction_bias'],
      experts: fused('mlp.experts'),
      shared: projections('mlp.shared_experts'),
    },
  ),
};
