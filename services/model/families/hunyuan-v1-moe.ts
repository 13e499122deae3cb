import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, sharedOf, swiglu } from './fields.js';
import { layouts, projections } from './layouts.js';
import { softmax } from './routers.js';

/** The publisher has a list of values for all layers. `intermediate_size` is an expert's, and the shared one's whatever their number. */
export const hunyuanV1Moe: Family = {
  name: 'hunyuan_v1_moe',
  types: ['hunyuan_v1_moe'],
  config: z
    .object({
      ...common,
      intermediate_size: expertWidth,
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers),
      routing: softmax(config.num_experts_per_tok, true),
      expert: swiglu(config.intermediate_size),
      shared: sharedOf(swiglu(config.intermediate_size)),
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({ router: 'mlp.gate.wg.weight', shared: projections('mlp.shared_mlp') }),
};
