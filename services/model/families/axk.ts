import { z } from 'zod';
import { deepseekV3, v3Keys } from './deepseek-v3.js';
import type { Family } from './family.js';
import { sharedOf, sparseLayers, swiglu } from './fields.js';
import { layouts, projections } from './layouts.js';
import { sigmoidGroups } from './routers.js';

/** DeepSeek-V3's block with a norm of its output. */
export const axk1: Family = {
  ...deepseekV3,
  name: 'axk1',
  types: ['axk1'],
  layouts: layouts({
    outputNorm: ['post_mlp_layernorm.weight', 'mlp.post_mlp_layernorm.weight'],
    selectionBias: ['mlp.gate.e_score_correction_bias'],
    shared: projections('mlp.shared_experts'),
  }),
};

/** Experts of groups that are not chosen count as 0, and a gate stands in front of the norm. */
export const axk2: Family = {
  ...deepseekV3,
  name: 'axk2',
  types: ['axk2'],
  bare: true,
  config: z.object(v3Keys).transform((config) => ({
    hidden: config.hidden_size,
    experts: config.num_experts,
    layers: sparseLayers(config),
    routing: sigmoidGroups(config, { masked: 'zero' }),
    expert: swiglu(config.moe_intermediate_size),
    shared: sharedOf(swiglu(config.moe_intermediate_size * config.n_shared_experts)),
    normEpsilon: config.rms_norm_eps,
  })),
};
