import { z } from 'zod';
import { modelLimits, size } from '../limits.js';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, silu, swiglu } from './fields.js';
import { layouts } from './layouts.js';
import { softmax } from './routers.js';

/** What its experts are is said in ffn_config. All experts of a matrix lie below each other, w2 as [inner, hidden]. Norms are LayerNorm. */
export const dbrx: Family = {
  name: 'dbrx',
  types: ['dbrx'],
  bare: true,
  config: z
    .object({
      hidden_size: common.hidden_size,
      num_hidden_layers: common.num_hidden_layers,
      ffn_config: z.object({
        ffn_hidden_size: expertWidth,
        moe_num_experts: size(modelLimits.experts),
        moe_top_k: size(modelLimits.topK),
        moe_normalize_expert_weights: z.union([z.literal(1), z.literal(2), z.null()], {
          error: '1, 2 or null',
        }),
        ffn_act_fn: z.object({ name: silu }).nullish(),
      }),
    })
    .transform(({ hidden_size, num_hidden_layers, ffn_config: ffn }) => ({
      hidden: hidden_size,
      experts: ffn.moe_num_experts,
      layers: allLayers(num_hidden_layers),
      routing: softmax(ffn.moe_top_k, ffn.moe_normalize_expert_weights !== null, {
        normPower: ffn.moe_normalize_expert_weights ?? 1,
      }),
      expert: swiglu(ffn.ffn_hidden_size),
      shared: null,
      normEpsilon: 0,
    })),
  layouts: layouts({
    norm: [],
    router: 'ffn.router.layer.weight',
    experts: {
      kind: 'joined',
      gate: 'ffn.experts.mlp.w1',
      up: 'ffn.experts.mlp.v1',
      down: 'ffn.experts.mlp.w2',
    },
  }),
};
