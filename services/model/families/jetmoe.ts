import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, silu, swiglu } from './fields.js';
import { linear } from './granitemoe.js';
import { layouts } from './layouts.js';
import { softmax } from './routers.js';

/** A bias is added to what the block gives. `intermediate_size` is an expert's; norms have the same epsilon whatever config.json says. */
export const jetMoe: Family = {
  name: 'jetmoe',
  types: ['jetmoe'],
  config: z
    .object({ ...common, intermediate_size: expertWidth, activation_function: silu })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers),
      routing: softmax(config.num_experts_per_tok, true),
      expert: { ...swiglu(config.intermediate_size), biased: true },
      shared: null,
      normEpsilon: 1e-6,
    })),
  layouts: layouts({ router: 'mlp.router.layer.weight', experts: linear('mlp'), outputBias: 'mlp.bias' }),
};
