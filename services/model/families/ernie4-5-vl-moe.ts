import { z } from 'zod';
import type { Family } from './family.js';
import {
  allLayers,
  common,
  countOrNone,
  expertWidth,
  layerKinds,
  orElse,
  sharedOf,
  swiglu,
} from './fields.js';
import { fused, layouts, projections } from './layouts.js';
import { softmax } from './routers.js';

/** One value for text and one for images, or one for both. */
function forBoth<T>(schema: z.ZodType<T>) {
  const two = z.tuple([schema, schema], { error: 'one value, or two: for text and for images' });
  return z.preprocess((value) => (Array.isArray(value) ? value : [value, value]), two);
}

const tokenId = z
  .int({ error: 'an integer from 0 to 4294967295' })
  .min(0, 'an integer from 0 to 4294967295')
  .max(2 ** 32 - 1, 'an integer from 0 to 4294967295');

/** The tokens of images and videos, with those that begin and end them; by default as transformers has them. */
const tokenIds = {
  image_token_id: orElse(tokenId, 100_295),
  image_start_token_id: orElse(tokenId, 101_304),
  image_end_token_id: orElse(tokenId, 101_305),
  video_token_id: orElse(tokenId, 103_367),
  video_start_token_id: orElse(tokenId, 101_306),
  video_end_token_id: orElse(tokenId, 101_307),
};
const tokenIdKeys = Object.keys(tokenIds) as (keyof typeof tokenIds)[];

/**
 * Tokens of text and of images have routers and experts of their own, and the shared experts in common. The publisher's tensors number experts of
 * text first, and hold their routers as [hidden, experts].
 */
export const ernie45VlMoe: Family = {
  name: 'ernie4_5_vl_moe',
  types: ['ernie4_5_vl_moe', 'ernie4_5_moe_vl'],
  outerKeys: [...tokenIdKeys, 'im_patch_id'],
  config: z
    .object({
      ...common,
      moe_intermediate_size: forBoth(expertWidth),
      n_shared_experts: orElse(countOrNone, 2),
      mlp_layer_types: layerKinds.mlp_layer_types,
      moe_layer_interval: orElse(z.int().min(1), 1),
      moe_layer_start_index: orElse(forBoth(z.int()), [1, 1]),
      moe_layer_end_index: orElse(forBoth(z.int()), [-1, -1]),
      ...tokenIds,
    })
    .transform((config) => {
      const { mlp_layer_types: types, moe_layer_interval: interval } = config;
      const [text, vision] = config.moe_intermediate_size;
      const start = Math.min(...config.moe_layer_start_index);
      const last = Math.max(...config.moe_layer_end_index);
      const end = last === -1 ? config.num_hidden_layers - 1 : last;
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers: allLayers(config.num_hidden_layers).filter((layer) =>
          types ? types[layer] === 'sparse' : (layer + 1) % interval === 0 && layer >= start && layer <= end,
        ),
        routing: softmax(config.num_experts_per_tok, true),
        expert: swiglu(text),
        isolated: {
          expert: swiglu(vision),
          tokenIds: [...new Set(tokenIdKeys.map((key) => config[key]))].sort((a, b) => a - b),
        },
        shared: sharedOf(swiglu(text * config.n_shared_experts)),
        normEpsilon: config.rms_norm_eps,
      };
    }),
  layouts: layouts(
    {
      routerTransposed: true,
      selectionBias: ['mlp.moe_statics.e_score_correction_bias'],
      isolated: { router: 'mlp.gate.weight_1', selectionBias: null, experts: null },
      shared: projections('mlp.shared_experts'),
    },
    {
      router: 'mlp.text_moe.gate.weight',
      selectionBias: ['mlp.text_moe.gate.moe_statics.e_score_correction_bias'],
      experts: fused('mlp.text_moe.experts'),
      isolated: {
        router: 'mlp.vision_moe.gate.weight',
        selectionBias: 'mlp.vision_moe.gate.moe_statics.e_score_correction_bias',
        experts: fused('mlp.vision_moe.experts'),
      },
      shared: projections('mlp.shared_experts'),
    },
  ),
};
