import { z } from 'zod';
import type { Family, FusedNames } from './family.js';
import { allLayers, common, countOrNone, expertWidth, orElse, sharedOf, swiglu } from './fields.js';
import { fused, layouts } from './layouts.js';
import { softmax } from './routers.js';

export const linear = (path: string): FusedNames => ({
  kind: 'fused',
  gateUp: `${path}.input_linear.weight`,
  down: `${path}.output_linear.weight`,
  transposed: false,
  interleaved: false,
});
const saved = { router: 'block_sparse_moe.router.layer.weight', experts: linear('block_sparse_moe') };
const inMemory = { router: 'block_sparse_moe.router.weight', experts: fused('block_sparse_moe.experts') };

/** Residuals have a factor. The shared experts stand beside the block, and belong to it here. `intermediate_size` is an expert's. */
export const graniteMoe: Family = {
  name: 'granitemoe',
  types: ['granitemoe', 'granitemoeshared', 'granitemoehybrid'],
  bare: true,
  config: z
    .object({
      ...common,
      intermediate_size: expertWidth,
      shared_intermediate_size: orElse(countOrNone, 0),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers),
      routing: softmax(config.num_experts_per_tok, true),
      expert: swiglu(config.intermediate_size),
      shared: sharedOf(swiglu(config.shared_intermediate_size)),
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: [saved, inMemory].flatMap((names) => layouts({ ...names, shared: linear('shared_mlp') })),
};
