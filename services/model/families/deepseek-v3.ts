import { z } from 'zod';
import type { Family } from './family.js';
import {
  allLayers,
  common,
  count,
  countOrNone,
  expertWidth,
  flag,
  layerKinds,
  number,
  orElse,
  sharedOf,
  sparseLayers,
  swiglu,
} from './fields.js';
import { layouts, projections } from './layouts.js';
import { sigmoidGroups } from './routers.js';

/** What DeepSeek-V3 and those that took it over say. */
export const v3Keys = {
  ...common,
  ...layerKinds,
  moe_intermediate_size: expertWidth,
  n_shared_experts: orElse(countOrNone, 0),
  n_group: orElse(count, 1),
  topk_group: orElse(count, 1),
  norm_topk_prob: orElse(flag, true),
  routed_scaling_factor: orElse(number, 1),
};

const v3Object = z.object(v3Keys);

const v3Model = (config: z.output<typeof v3Object>) => ({
  hidden: config.hidden_size,
  experts: config.num_experts,
  layers: sparseLayers(config),
  routing: sigmoidGroups(config),
  expert: swiglu(config.moe_intermediate_size),
  shared: sharedOf(swiglu(config.moe_intermediate_size * config.n_shared_experts)),
  normEpsilon: config.rms_norm_eps,
});

export const v3Config = v3Object.transform(v3Model);

const selectionBias = [
  'mlp.gate.e_score_correction_bias',
  'mlp.gate.expert_bias',
  'mlp.e_score_correction_bias',
  'mlp.experts.e_score_correction_bias',
];

/**
 * Kimi-K2 is DeepSeek-V3, GLM routes like it. Layers behind the last are for the prediction of several tokens. Transformers has the bias in
 * float32: one in BF16 would choose other experts where it is large beside the scores.
 */
export const deepseekV3: Family = {
  name: 'deepseek_v3',
  types: [
    'deepseek_v3',
    'deepseek_v32',
    'kimi_k2',
    'kimi_k25',
    'glm4_moe',
    'glm4_moe_lite',
    'glm4v_moe',
    'glm_moe_dsa',
    'dots1',
    'exaone_moe',
    'sarvam_mla',
    'sarvam_moe',
    'bailing_hybrid',
    'mimo_v2_flash',
  ],
  config: v3Config,
  layouts: layouts({ selectionBias, shared: projections('mlp.shared_experts') }),
};

/** All layers have experts, whatever the config says of dense ones: transformers has none. */
export const solarOpen: Family = {
  ...deepseekV3,
  name: 'solar_open',
  types: ['solar_open'],
  config: v3Object.transform((config) => ({
    ...v3Model(config),
    layers: allLayers(config.num_hidden_layers),
  })),
};
