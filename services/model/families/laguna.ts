import { z } from 'zod';
import type { Family } from './family.js';
import { common, expertWidth, layerKinds, number, orElse, sparseLayers, swiglu } from './fields.js';
import { layouts, projections } from './layouts.js';
import { sigmoid } from './routers.js';

export const laguna: Family = {
  name: 'laguna',
  types: ['laguna'],
  config: z
    .object({
      ...common,
      ...layerKinds,
      moe_intermediate_size: expertWidth,
      shared_expert_intermediate_size: expertWidth,
      moe_routed_scaling_factor: orElse(number, 1),
      moe_router_logit_softcapping: orElse(number, 0),
      moe_apply_router_weight_on_input: z.literal(false, { error: 'false' }),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: sparseLayers(config),
      routing: sigmoid(config.num_experts_per_tok, true, {
        scale: config.moe_routed_scaling_factor,
        ...(config.moe_router_logit_softcapping > 0 ? { logitCap: config.moe_router_logit_softcapping } : {}),
      }),
      expert: swiglu(config.moe_intermediate_size),
      shared: { ...swiglu(config.shared_expert_intermediate_size), weight: 1, gated: false },
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: ['mlp.shared_expert', 'mlp.shared_experts'].flatMap((shared) =>
    layouts({
      selectionBias: ['mlp.experts.e_score_correction_bias', 'mlp.gate.e_score_correction_bias'],
      shared: projections(shared),
    }),
  ),
};
