import { z } from 'zod';
import { clamped } from './activations.js';
import { v3Keys } from './deepseek-v3.js';
import type { Family } from './family.js';
import { number, orElse, sharedOf, sparseLayers } from './fields.js';
import { layouts, projections } from './layouts.js';
import { sigmoidGroups } from './routers.js';

/** Gate and up are bounded, of shared experts too. Only the bare block makes sense: residuals are hyper-connections. */
export const glm5Next: Family = {
  name: 'glm5_next',
  types: ['glm5_next'],
  bare: true,
  config: z.object({ ...v3Keys, swiglu_limit: orElse(number, 10) }).transform((config) => ({
    hidden: config.hidden_size,
    experts: config.num_experts,
    layers: sparseLayers(config),
    routing: sigmoidGroups(config),
    expert: clamped(config.moe_intermediate_size, config.swiglu_limit),
    shared: sharedOf(clamped(config.moe_intermediate_size * config.n_shared_experts, config.swiglu_limit)),
    normEpsilon: config.rms_norm_eps,
  })),
  layouts: layouts({
    selectionBias: ['mlp.gate.e_score_correction_bias'],
    shared: projections('mlp.shared_experts'),
  }),
};
