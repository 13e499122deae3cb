import { z } from 'zod';
import { modelLimits, size } from '../limits.js';
import { v3Keys } from './deepseek-v3.js';
import type { Family } from './family.js';
import { allLayers, expertWidth, orElse, sharedOf } from './fields.js';
import { layouts } from './layouts.js';
import { sigmoidGroups } from './routers.js';

const relu2 = (ffn: number) => ({ ffn, activation: 'relu2', glu: null, biased: false }) as const;
const latentOf = (latent: number | null | undefined) => (latent ? { latent } : {});
const matrices = (path: string) =>
  ({ kind: 'separate', gate: null, up: `${path}.up_proj.weight`, down: `${path}.down_proj.weight` }) as const;
const kinds: Readonly<Record<string, string>> = {
  M: 'linear_attention',
  E: 'moe',
  '*': 'full_attention',
  '-': 'mlp',
};

/** A layer is one block of one kind, under `mixer`; experts have no gate. In the latent form the routed ones stand between linear maps. */
export const nemotronH: Family = {
  name: 'nemotron_h',
  types: ['nemotron_h'],
  config: z
    .object({
      ...v3Keys,
      num_hidden_layers: size(modelLimits.layers).optional(),
      hidden_act: z.unknown().optional(),
      mlp_hidden_act: z.literal('relu2', { error: '"relu2"' }),
      moe_latent_size: size(modelLimits.hidden).nullish(),
      moe_shared_expert_intermediate_size: orElse(expertWidth, 7688),
      layers_block_type: z.array(z.string(), { error: 'a list of kinds of layers' }).nullish(),
      hybrid_override_pattern: z.string({ error: 'a text of M, E, * and -' }).nullish(),
    })
    .transform((config, context) => {
      const types =
        config.layers_block_type ??
        config.hybrid_override_pattern?.split('').map((kind) => kinds[kind] ?? kind);
      if (!types) {
        const message = 'a list of kinds of layers, or hybrid_override_pattern';
        context.addIssue({ code: 'custom', path: ['layers_block_type'], message });
        return z.NEVER;
      }
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers: allLayers(types.length).filter((layer) => types[layer] === 'moe'),
        routing: sigmoidGroups(config),
        expert: { ...relu2(config.moe_intermediate_size), ...latentOf(config.moe_latent_size) },
        shared: sharedOf(relu2(config.moe_shared_expert_intermediate_size)),
        normEpsilon: config.rms_norm_eps,
      };
    }),
  layouts: layouts({
    norm: ['norm.weight'],
    router: 'mixer.gate.weight',
    selectionBias: ['mixer.gate.e_score_correction_bias'],
    experts: matrices('mixer.experts.#'),
    latent: { input: 'mixer.fc1_latent_proj.weight', output: 'mixer.fc2_latent_proj.weight' },
    shared: matrices('mixer.shared_experts'),
  }),
};
