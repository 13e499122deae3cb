import { z } from 'zod';
import { modelLimits, size } from '../limits.js';
import { clamped } from './activations.js';
import type { Family } from './family.js';
import { allLayers, common, countOrNone, expertWidth, kindsOf, number, orElse, sharedOf } from './fields.js';
import { fused, layouts, numbered, projections } from './layouts.js';

/**
 * Scores are sqrt(softplus(logit)), always renormalised. The first layers choose by the tokens' ids. There is one shared expert. Residuals are
 * hyper-connections.
 */
export const deepseekV4: Family = {
  name: 'deepseek_v4',
  types: ['deepseek_v4'],
  bare: true,
  config: z
    .object({
      ...common,
      num_hidden_layers: size(modelLimits.layers),
      moe_intermediate_size: expertWidth,
      routed_scaling_factor: orElse(number, 1.5),
      scoring_func: z.literal('sqrtsoftplus', { error: '"sqrtsoftplus"' }),
      swiglu_limit: orElse(number, 10),
      mlp_layer_types: kindsOf('hash_moe', 'moe'),
      num_hash_layers: orElse(countOrNone, 3),
      vocab_size: orElse(size(modelLimits.vocabulary), 129_280),
    })
    .transform((config) => {
      const layers = allLayers(config.num_hidden_layers);
      const hashed = (layer: number) =>
        config.mlp_layer_types
          ? config.mlp_layer_types[layer] === 'hash_moe'
          : layer < config.num_hash_layers;
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers,
        hashed: { layers: layers.filter(hashed), vocabulary: config.vocab_size },
        routing: {
          topK: config.num_experts_per_tok,
          score: 'sqrt-softplus' as const,
          renormalise: true,
          scale: config.routed_scaling_factor,
          groups: 1,
          groupsChosen: 1,
          groupScore: 'max' as const,
          masked: 'negative-infinity' as const,
          weightOn: 'output' as const,
        },
        expert: clamped(config.moe_intermediate_size, config.swiglu_limit),
        shared: sharedOf(clamped(config.moe_intermediate_size, config.swiglu_limit)),
        normEpsilon: config.rms_norm_eps,
      };
    }),
  layouts: layouts(
    {
      norm: ['ffn_norm.weight'],
      router: 'ffn.gate.weight',
      selectionBias: ['ffn.gate.bias'],
      tokenExperts: 'ffn.gate.tid2eid',
      experts: numbered('ffn.experts.#'),
      shared: numbered('ffn.shared_experts'),
    },
    {
      selectionBias: ['mlp.gate.e_score_correction_bias'],
      tokenExperts: 'mlp.gate.tid2eid',
      experts: fused('mlp.experts'),
      shared: projections('mlp.shared_experts'),
    },
  ),
};
