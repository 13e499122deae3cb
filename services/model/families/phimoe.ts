import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, number, orElse, swiglu } from './fields.js';
import { fused, layouts, numbered } from './layouts.js';
import { softmax } from './routers.js';

/**
 * SparseMixer: each of the chosen weighs what a softmax over the experts near it, less those chosen before, gives it. `intermediate_size` is an
 * expert's. Norms are LayerNorm.
 */
export const phiMoe: Family = {
  name: 'phimoe',
  types: ['phimoe'],
  bare: true,
  config: z
    .object({
      ...common,
      intermediate_size: expertWidth,
      num_experts_per_tok: z.literal(2, { error: '2' }),
      router_jitter_noise: orElse(number, 0.01),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers),
      routing: {
        ...softmax(config.num_experts_per_tok, false),
        score: 'sparse-mixer' as const,
        mixerReach: 2 * config.router_jitter_noise,
      },
      expert: swiglu(config.intermediate_size),
      shared: null,
      normEpsilon: 0,
    })),
  layouts: layouts(
    {
      norm: [],
      router: 'block_sparse_moe.gate.weight',
      experts: numbered('block_sparse_moe.experts.#'),
    },
    { norm: [], router: 'mlp.router.weight', experts: fused('mlp.experts') },
  ),
};
