import type { Family } from './family.js';
import { flag, orElse } from './fields.js';
import { qwen3Moe, qwen3MoeConfig } from './qwen3-moe.js';

/** Qwen3-MoE within a thinker; it renormalises unless told otherwise. */
export const qwen3OmniMoe: Family = {
  ...qwen3Moe,
  name: 'qwen3_omni_moe',
  types: ['qwen3_omni_moe', 'qwen3_omni_moe_thinker'],
  config: qwen3MoeConfig(orElse(flag, true)),
};
