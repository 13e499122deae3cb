import { z } from 'zod';
import type { Family } from './family.js';
import {
  allLayers,
  common,
  expertWidth,
  layerKinds,
  number,
  orElse,
  sharedOf,
  sparseLayers,
  swiglu,
} from './fields.js';
import { layouts, projections } from './layouts.js';
import { sigmoid } from './routers.js';

const limits = z.array(z.number().nullable(), { error: 'a list of numbers or null' }).nullish();

/** What is silu(gate) at most, and up on both sides. 0 is no limit. */
const bounded = (limit: number | null | undefined) =>
  limit ? { alpha: 1, gateMax: null, activationMax: limit, upMax: limit, upOffset: 0 } : null;

/** Bounds are a layer's own. Norms multiply by 1 + weight. All experts of a matrix are in one tensor. */
export const step3p7: Family = {
  name: 'step3p7',
  types: ['step3p7', 'step3p5'],
  config: z
    .object({
      ...common,
      ...layerKinds,
      moe_layers_enum: z
        .union([z.string(), z.array(z.int())], { error: 'layer numbers, as a list or in a text with commas' })
        .nullish(),
      moe_intermediate_size: expertWidth,
      share_expert_dim: orElse(expertWidth, 1280),
      moe_router_scaling_factor: orElse(number, 1),
      swiglu_limits: limits,
      swiglu_limits_shared: limits,
    })
    .transform((config) => {
      const { moe_layers_enum: listed } = config;
      const sparse = (typeof listed === 'string' ? listed.split(',') : listed)?.map(Number);
      const all = allLayers(config.num_hidden_layers);
      const layers = config.mlp_layer_types
        ? sparseLayers(config)
        : all.filter((layer) => sparse?.includes(layer) ?? layer >= 3);
      const form = (layer: number) => ({
        expert: bounded(config.swiglu_limits?.[layer]),
        shared: bounded(config.swiglu_limits_shared?.[layer]),
      });
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers,
        routing: sigmoid(config.num_experts_per_tok, true, { scale: config.moe_router_scaling_factor }),
        expert: swiglu(config.moe_intermediate_size),
        shared: sharedOf(swiglu(config.share_expert_dim)),
        glus: Object.fromEntries(layers.map((layer) => [layer, form(layer)])),
        normEpsilon: config.rms_norm_eps,
      };
    }),
  layouts: layouts(
    {
      normOffset: 1,
      router: 'moe.gate.weight',
      selectionBias: ['moe.router_bias'],
      experts: projections('moe'),
      shared: projections('share_expert'),
    },
    {
      normOffset: 1,
      selectionBias: ['mlp.gate.e_score_correction_bias'],
      shared: projections('mlp.shared_experts'),
    },
  ),
};
