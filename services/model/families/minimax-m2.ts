import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, swiglu } from './fields.js';
import { layouts, numbered } from './layouts.js';
import { sigmoid } from './routers.js';

/** `intermediate_size` is an expert's. */
export const minimaxM2: Family = {
  name: 'minimax_m2',
  types: ['minimax_m2'],
  config: z.object({ ...common, intermediate_size: expertWidth }).transform((config) => ({
    hidden: config.hidden_size,
    experts: config.num_experts,
    layers: allLayers(config.num_hidden_layers),
    routing: sigmoid(config.num_experts_per_tok, true),
    expert: swiglu(config.intermediate_size),
    shared: null,
    normEpsilon: config.rms_norm_eps,
  })),
  layouts: layouts(
    {
      router: 'block_sparse_moe.gate.weight',
      selectionBias: ['block_sparse_moe.e_score_correction_bias'],
      experts: numbered('block_sparse_moe.experts.#'),
    },
    { selectionBias: ['mlp.e_score_correction_bias'] },
  ),
};
