import { z } from 'zod';
import type { RoutingSpec } from '../../native/index.js';
import { modelLimits, size } from './limits.js';
import type { ModelSpec } from './spec.js';

/** What a family's config.json says about its MoE layers. */
export interface FamilyConfig {
  hidden: number;
  ffn: number;
  experts: number;
  /** Layers with experts, ascending. */
  layers: number[];
  routing: RoutingSpec;
  normEpsilon: number;
}

/**
 * Tensor names under `model.layers.N.`; `#` stands for the expert's number. Separate: three matrices an expert.
 * Fused: all experts in two tensors, [experts, 2 * ffn, hidden] (gate above up) and [experts, hidden, ffn], as
 * transformers holds them in memory since version 5 and saves them when told not to use the original format.
 */
export type TensorLayout =
  | { kind: 'separate'; router: string; gate: string; up: string; down: string }
  | { kind: 'fused'; router: string; gateUp: string; down: string };

/** One row of the table: all that sets a model family apart. */
export interface Family {
  config: z.ZodType<FamilyConfig>;
  /** The norm in front of the MoE block. */
  norm: string;
  /** Tried in order. */
  layouts: readonly TensorLayout[];
}

/** Families whose activation is another would compute something else in silence. */
const silu = z.literal('silu', { error: '"silu"' }).default('silu');
const epsilon = z
  .number({ error: 'a number from 0 to 1' })
  .min(0, 'a number from 0 to 1')
  .max(1, 'a number from 0 to 1');
const flag = z.boolean({ error: 'true or false' });

const ungrouped = {
  score: 'softmax',
  scale: 1,
  groups: 1,
  groupsChosen: 1,
  groupScore: 'max',
  masked: 'negative-infinity',
  weightOn: 'output',
} as const;

const fusedMlp: TensorLayout = {
  kind: 'fused',
  router: 'mlp.gate.weight',
  gateUp: 'mlp.experts.gate_up_proj',
  down: 'mlp.experts.down_proj',
};

function allLayers(count: number): number[] {
  return Array.from({ length: count }, (_, layer) => layer);
}

/** w1 is the gate, w3 is up, w2 is down. */
const mixtral: Family = {
  config: z
    .object({
      hidden_size: size(modelLimits.hidden),
      intermediate_size: size(modelLimits.ffn),
      num_local_experts: size(modelLimits.experts),
      num_experts_per_tok: size(modelLimits.topK),
      num_hidden_layers: size(modelLimits.layers),
      rms_norm_eps: epsilon.default(1e-5),
      hidden_act: silu,
    })
    .transform((config) => ({
      hidden: config.hidden_size,
      ffn: config.intermediate_size,
      experts: config.num_local_experts,
      layers: allLayers(config.num_hidden_layers),
      routing: { ...ungrouped, topK: config.num_experts_per_tok, renormalise: true },
      normEpsilon: config.rms_norm_eps,
    })),
  norm: 'post_attention_layernorm.weight',
  layouts: [
    {
      kind: 'separate',
      router: 'block_sparse_moe.gate.weight',
      gate: 'block_sparse_moe.experts.#.w1.weight',
      up: 'block_sparse_moe.experts.#.w3.weight',
      down: 'block_sparse_moe.experts.#.w2.weight',
    },
    fusedMlp,
  ],
};

/** Some layers may be dense. Newer versions of transformers save `num_experts` as `num_local_experts`. */
const qwen3Moe: Family = {
  config: z
    .object({
      hidden_size: size(modelLimits.hidden),
      moe_intermediate_size: size(modelLimits.ffn),
      num_experts: size(modelLimits.experts).optional(),
      num_local_experts: size(modelLimits.experts).optional(),
      num_experts_per_tok: size(modelLimits.topK),
      num_hidden_layers: size(modelLimits.layers),
      norm_topk_prob: flag.default(false),
      decoder_sparse_step: size(modelLimits.layers).default(1),
      mlp_only_layers: z.array(z.int(), { error: 'a list of layer numbers' }).nullish(),
      rms_norm_eps: epsilon.default(1e-6),
      hidden_act: silu,
    })
    .transform((config, context) => {
      const experts = config.num_experts ?? config.num_local_experts;
      if (experts === undefined) {
        const message = `an integer from 1 to ${modelLimits.experts}`;
        context.addIssue({ code: 'custom', path: ['num_experts'], message });
        return z.NEVER;
      }
      return {
        hidden: config.hidden_size,
        ffn: config.moe_intermediate_size,
        experts,
        layers: allLayers(config.num_hidden_layers).filter(
          (layer) =>
            !config.mlp_only_layers?.includes(layer) && (layer + 1) % config.decoder_sparse_step === 0,
        ),
        routing: { ...ungrouped, topK: config.num_experts_per_tok, renormalise: config.norm_topk_prob },
        normEpsilon: config.rms_norm_eps,
      };
    }),
  norm: 'post_attention_layernorm.weight',
  layouts: [
    {
      kind: 'separate',
      router: 'mlp.gate.weight',
      gate: 'mlp.experts.#.gate_proj.weight',
      up: 'mlp.experts.#.up_proj.weight',
      down: 'mlp.experts.#.down_proj.weight',
    },
    fusedMlp,
  ],
};

/** By `model_type` of config.json. */
export const families: Readonly<Record<Exclude<ModelSpec['family'], 'synthetic'>, Family>> = {
  mixtral,
  qwen3_moe: qwen3Moe,
};
