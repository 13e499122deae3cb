import type { z } from 'zod';
import type { GluForm, RoutingSpec } from '../../../native/index.js';
import type { FfnSpec } from '../spec.js';

/** The experts that every token goes to, as one FFN: families hold several of them side by side in one. */
export interface SharedSpec extends FfnSpec {
  weight: number;
  /** Multiply its result by sigmoid(w · x) too. */
  gated: boolean;
}

/** Experts of their own for tokens of some ids, of the routed ones' number. */
export interface IsolatedConfig {
  expert: FfnSpec;
  tokenIds: number[];
}

/** What a family's config.json says about its MoE layers. */
export interface FamilyConfig {
  hidden: number;
  /** Those that are routed to; where there are isolated ones too, as many of each kind. */
  experts: number;
  /** Layers with experts, ascending. */
  layers: number[];
  /** Those of them whose experts the ids of tokens choose, and how many ids there are; absent: none. */
  hashed?: { layers: number[]; vocabulary: number };
  routing: RoutingSpec;
  expert: FfnSpec;
  /** Absent: there are none. */
  isolated?: IsolatedConfig;
  shared: SharedSpec | null;
  /** So many of the experts that the gate chooses among, the last of them, give their rows back as they are; none if absent. */
  identities?: number;
  /** False: experts are chosen by their scores alone, though the family has a bias for that. */
  selectionBias?: boolean;
  /** By layer, where they are not the same for all: the forms of routed and of shared experts, in place of those of `expert` and `shared`. */
  glus?: Readonly<Record<number, { expert: GluForm | null; shared: GluForm | null }>>;
  normEpsilon: number;
}

/**
 * Names of three matrices of an FFN. `gate` is null without one. Joined: each tensor has the matrices of all experts below each other, in two
 * dimensions, [experts * ffn, hidden], with `down` transposed.
 */
export interface MatrixNames {
  kind: 'separate' | 'joined';
  gate: string | null;
  up: string;
  down: string;
}

/** The weights of linear maps in front of a layer's experts and behind the sum of their results; biases beside them are added. */
export interface LatentNames {
  /** [latent, hidden] */
  input: string;
  /** [hidden, latent] */
  output: string;
}

/** Where isolated experts and their router are. */
export interface IsolatedNames {
  router: string;
  /** Null: it is the second row of the bias of the others. */
  selectionBias: string | null;
  /** Null: they have the names of the others, and the numbers that follow. */
  experts: FusedNames | null;
}

/**
 * Gate and up in one tensor, [2 * ffn, hidden] with the gate above, or where `interleaved`, row by row in turn. Transposed: tensors are
 * [hidden, 2 * ffn] and [ffn, hidden]; `either` is told by the shape, and
 * `unless-packed` by whether they are quantised.
 */
export interface FusedNames {
  kind: 'fused';
  gateUp: string;
  down: string;
  transposed: boolean | 'either' | 'unless-packed';
  interleaved: boolean;
  /** Biases, [2 * ffn] and [hidden]; only of families that have them. */
  gateUpBias?: string;
  downBias?: string;
}

/**
 * How an export names a layer's tensors, under the layer's own prefix. In the names of experts `#` stands for the expert's number; without it
 * the tensor holds all experts, in one more dimension in front. Of several names the first that is there counts.
 */
export interface LayerNames {
  /** The weight of the norm in front of the MoE block. */
  norm: readonly string[];
  /** What is added to it: 1 where the norm multiplies by 1 + weight. */
  normOffset: number;
  /** The weight of a norm of the block's output; none if empty. */
  outputNorm: readonly string[];
  router: string;
  /** Where the router's weight is stored as [hidden, experts]. */
  routerTransposed: boolean;
  /** Added to the logits. */
  routerBias: string | null;
  /** What the rows that the router alone normalises are multiplied by, beside 1 / sqrt(hidden); null: it takes them as they are. */
  routerScale: string | null;
  /** What weights of chosen experts are multiplied by in the end. */
  expertScale: string | null;
  /** Added to scores for choosing only. */
  selectionBias: readonly string[];
  /** I64 [vocabulary, topK], in hashed layers alone: the experts that tokens go to by their ids. */
  tokenExperts: string | null;
  experts: MatrixNames | FusedNames;
  /** Only of families with isolated experts. */
  isolated: IsolatedNames | null;
  /** Of experts that have a latent width; only of families with shared experts, which have the hidden one. */
  latent: LatentNames | null;
  /** Of the shared experts; null: the family has none. */
  shared: MatrixNames | FusedNames | null;
  /** [1, hidden] */
  sharedGate: string | null;
  /** [hidden], added to what the block gives; only where weights add up to 1, since each chosen expert adds it to its own result. */
  outputBias: string | null;
}

/** All that sets a model family apart. */
export interface Family {
  name: string;
  /** Values of `model_type`, of config.json or of its text_config. */
  types: readonly string[];
  /** Its layers are not x + MoE(RMSNorm(x)), so that only the block alone makes sense. */
  bare?: boolean;
  config: z.ZodType<FamilyConfig>;
  /** Keys of the whole model's configuration, around that of its language model, that `config` reads too. */
  outerKeys?: readonly string[];
  /** Tried in order. */
  layouts: readonly LayerNames[];
}
