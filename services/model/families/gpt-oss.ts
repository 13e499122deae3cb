import { z } from 'zod';
import { ossGlu } from './activations.js';
import type { Family } from './family.js';
import { allLayers, common, expertWidth, number, orElse } from './fields.js';
import { fused, layouts } from './layouts.js';
import { softmax } from './routers.js';

const biases = { gateUpBias: 'mlp.experts.gate_up_proj_bias', downBias: 'mlp.experts.down_proj_bias' };
const router = { router: 'mlp.router.weight', routerBias: 'mlp.router.bias' };

/**
 * Gate and up take turns. `intermediate_size` is an expert's. Tensors are transposed, but for those in MXFP4 (`_blocks` and `_scales`).
 * Its softmax is over the chosen experts.
 */
export const gptOss: Family = {
  name: 'gpt_oss',
  types: ['gpt_oss'],
  config: z
    .object({
      ...common,
      intermediate_size: expertWidth,
      swiglu_alpha: orElse(number, 1.702),
      swiglu_limit: orElse(number, 7),
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      experts: config.num_experts,
      layers: allLayers(config.num_hidden_layers),
      routing: softmax(config.num_experts_per_tok, true),
      expert: ossGlu(config.intermediate_size, config.swiglu_alpha, config.swiglu_limit, true),
      shared: null,
      normEpsilon: config.rms_norm_eps,
    })),
  layouts: layouts({
    ...router,
    experts: fused('mlp.experts', { transposed: 'unless-packed', interleaved: true, ...biases }),
  }),
};

/** The same block, whose gate and up are one above the other. */
export const openaiPrivacyFilter: Family = {
  ...gptOss,
  name: 'openai_privacy_filter',
  types: ['openai_privacy_filter'],
  layouts: layouts({ ...router, experts: fused('mlp.experts', { transposed: true, ...biases }) }),
};
