import { z } from 'zod';
import { v3Keys } from './deepseek-v3.js';
import type { Family } from './family.js';
import { sharedOf, sparseLayers, swiglu } from './fields.js';
import { fused, layouts, numbered, projections } from './layouts.js';
import { softmax } from './routers.js';

const read = (config: z.infer<z.ZodObject<typeof v3Keys>>, renormalise: boolean) => ({
  hidden: config.hidden_size,
  experts: config.num_experts,
  layers: sparseLayers(config),
  routing: softmax(config.num_experts_per_tok, renormalise, {
    scale: config.routed_scaling_factor,
    groups: config.n_group,
    groupsChosen: config.topk_group,
    groupScore: 'top2',
  }),
  expert: swiglu(config.moe_intermediate_size),
  shared: sharedOf(swiglu(config.moe_intermediate_size * config.n_shared_experts)),
  normEpsilon: config.rms_norm_eps,
});

/** DeepSeek-V3's groups over a softmax, without a bias. */
export const mistral4: Family = {
  name: 'mistral4',
  types: ['mistral4'],
  config: z.object(v3Keys).transform((config) => read(config, config.norm_topk_prob)),
  layouts: layouts(
    { experts: fused('mlp.experts'), shared: projections('mlp.shared_experts') },
    { shared: projections('mlp.shared_experts') },
  ),
};

/** It always renormalises. The publisher's names have no `mlp`. */
export const mistralLarge4: Family = {
  name: 'mistral_large4',
  types: ['mistral_large4'],
  config: z.object({ ...v3Keys }).transform((config) => read(config, true)),
  layouts: layouts(
    {
      norm: ['ffn_norm.weight'],
      router: 'gate.weight',
      experts: numbered('experts.#'),
      shared: numbered('shared_experts'),
    },
    { shared: projections('mlp.shared_experts') },
  ),
};
