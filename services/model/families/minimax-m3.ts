import { z } from 'zod';
import { ossGlu } from './activations.js';
import type { Family } from './family.js';
import { common, expertWidth, layerKinds, number, orElse, sparseLayers } from './fields.js';
import { fused, layouts, numbered, projections } from './layouts.js';
import { sigmoid } from './routers.js';

/** The GLU of gpt-oss without biases, for shared experts too. Norms multiply by 1 + weight. `intermediate_size` is an expert's. */
export const minimaxM3: Family = {
  name: 'minimax_m3',
  types: ['minimax_m3_vl', 'minimax_m3'],
  config: z
    .object({
      ...common,
      ...layerKinds,
      hidden_act: z.unknown().optional(),
      intermediate_size: expertWidth,
      shared_intermediate_size: expertWidth,
      routed_scaling_factor: orElse(number, 1),
      swiglu_alpha: orElse(number, 1.702),
      swiglu_limit: orElse(number, 7),
    })
    .transform((config) => {
      const glu = (ffn: number) => ossGlu(ffn, config.swiglu_alpha, config.swiglu_limit, false);
      return {
        hidden: config.hidden_size,
        experts: config.num_experts,
        layers: sparseLayers(config),
        routing: sigmoid(config.num_experts_per_tok, true, { scale: config.routed_scaling_factor }),
        expert: glu(config.intermediate_size),
        shared: { ...glu(config.shared_intermediate_size), weight: 1, gated: false },
        normEpsilon: config.rms_norm_eps,
      };
    }),
  layouts: ['block_sparse_moe', 'mlp'].flatMap((block) => {
    const names = {
      normOffset: 1,
      router: `${block}.gate.weight`,
      selectionBias: [`${block}.gate.e_score_correction_bias`, `${block}.e_score_correction_bias`],
    };
    const apart = projections(`${block}.shared_experts`);
    const joined = {
      ...fused(`${block}.shared_experts`),
      gateUp: `${block}.shared_experts.gate_up_proj.weight`,
      down: `${block}.shared_experts.down_proj.weight`,
    };
    return [joined, apart].flatMap((shared) =>
      [numbered(`${block}.experts.#`), projections(`${block}.experts.#`), fused(`${block}.experts`)].flatMap(
        (experts) => layouts({ ...names, experts, shared }),
      ),
    );
  }),
};
