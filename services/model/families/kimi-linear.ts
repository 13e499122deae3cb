import { v3Config } from './deepseek-v3.js';
import type { Family } from './family.js';
import { fused, layouts, numbered, projections } from './layouts.js';

/** DeepSeek-V3's block; its experts' matrices have numbers, those of the shared ones have names. */
export const kimiLinear: Family = {
  name: 'kimi_linear',
  types: ['kimi_linear'],
  config: v3Config,
  layouts: layouts(
    {
      router: 'block_sparse_moe.gate.weight',
      selectionBias: ['block_sparse_moe.gate.e_score_correction_bias'],
      experts: numbered('block_sparse_moe.experts.#'),
      shared: projections('block_sparse_moe.shared_experts'),
    },
    {
      selectionBias: ['mlp.gate.e_score_correction_bias'],
      experts: fused('mlp.experts'),
      shared: projections('mlp.shared_experts'),
    },
  ),
};
