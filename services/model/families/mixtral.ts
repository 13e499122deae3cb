import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, swiglu } from './fields.js';
import { fused, layouts, numbered } from './layouts.js';
import { softmax } from './routers.js';

/** `intermediate_size` is an expert's. Transformers may save its fused tensors under `mlp`. */
export const mixtral: Family = {
  name: 'mixtral',
  types: ['mixtral'],
  config: z.object({ ...common, intermediate_size: expertWidth }).transform((config) => ({
    hidden: config.hidden_size,
    experts: config.num_experts,
    layers: allLayers(config.num_hidden_layers),
    routing: softmax(config.num_experts_per_tok, true),
    expert: swiglu(config.intermediate_size),
    shared: null,
    normEpsilon: config.rms_norm_eps,
  })),
  layouts: layouts(
    { router: 'block_sparse_moe.gate.weight', experts: numbered('block_sparse_moe.experts.#') },
    { experts: fused('mlp.experts') },
  ),
};
