import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, count, expertWidth, orElse, swiglu } from './fields.js';
import { fused, layouts, projections } from './layouts.js';
import { softmax } from './routers.js';

/** `intermediate_size` is an expert's. */
export const aria: Family = {
  name: 'aria',
  types: ['aria'],
  config: z
    .object({ ...common, intermediate_size: expertWidth, n_shared_experts: orElse(count, 2) })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers),
      routing: softmax(config.num_experts_per_tok, true),
      expert: swiglu(config.intermediate_size),
      shared: { ...swiglu(config.intermediate_size * config.n_shared_experts), weight: 1, gated: false },
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: [{ gateUp: 'mlp.experts.fc1.weight', down: 'mlp.experts.fc2.weight' }, {}].flatMap((names) =>
    layouts({
      router: 'mlp.router.weight',
      experts: fused('mlp.experts', { ...names, transposed: true }),
      shared: projections('mlp.shared_experts'),
    }),
  ),
};
