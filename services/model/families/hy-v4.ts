import { z } from 'zod';
import { clamped } from './activations.js';
import { v3Keys } from './deepseek-v3.js';
import type { Family } from './family.js';
import { number, orElse, sharedOf, sparseLayers, swiglu } from './fields.js';
import { fused, layouts, projections } from './layouts.js';
import { sigmoidGroups } from './routers.js';

/** The bounds are those of routed experts alone. Residuals are hyper-connections. */
export const hyV4: Family = {
  name: 'hy_v4',
  types: ['hy_v4', 'hy_v4_vl'],
  bare: true,
  config: z.object({ ...v3Keys, swiglu_limit: orElse(number, 10) }).transform((config) => ({
    hidden: config.hidden_size,
    experts: config.num_experts,
    layers: sparseLayers(config),
    routing: sigmoidGroups(config),
    expert: clamped(config.moe_intermediate_size, config.swiglu_limit),
    shared: sharedOf(swiglu(config.moe_intermediate_size * config.n_shared_experts)),
    normEpsilon: config.rms_norm_eps,
  })),
  layouts: ['linear_gate', 'gate_proj'].flatMap((gate) =>
    layouts({
      selectionBias: ['mlp.gate.e_score_correction_bias'],
      experts: fused('mlp.experts'),
      shared: { ...projections('mlp.shared_experts'), gate: `mlp.shared_experts.${gate}.weight` },
    }),
  ),
};
