import { z } from 'zod';
import type { Family } from './family.js';
import { allLayers, common, expertWidth } from './fields.js';
import { fused, layouts } from './layouts.js';
import { softmax } from './routers.js';

/** The router normalises its rows itself, which others than the experts' are normalised by; a dense FFN stands beside the block. */
export const gemma4: Family = {
  name: 'gemma4',
  types: ['gemma4'],
  bare: true,
  config: z
    .object({
      ...common,
      moe_intermediate_size: expertWidth,
      hidden_act: z.unknown().optional(),
      hidden_activation: z.literal('gelu_pytorch_tanh', { error: '"gelu_pytorch_tanh"' }),
      enable_moe_block: z.literal(true, { error: 'true: without it there are no experts' }),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers),
      routing: softmax(config.num_experts_per_tok, true),
      expert: { ffn: config.moe_intermediate_size, activation: 'geglu' as const, glu: null, biased: false },
      shared: null,
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({
    router: 'router.proj.weight',
    routerScale: 'router.scale',
    expertScale: 'router.per_expert_scale',
    experts: fused('experts'),
  }),
};
