import type { Activation, ExpertSource, GluForm, RoutingSpec, TensorSource } from '../../native/index.js';

export interface CheckpointSource {
  kind: 'checkpoint';
  directory: string;
  /** Serve weights that are NaN or infinite; without it they are refused. */
  allowNonFiniteWeights?: boolean | undefined;
}

/** Where the weights come from: enough for any process on a host that sees the same files to load them. */
export type ModelSource = CheckpointSource | { kind: 'synthetic'; spec: SyntheticSpec };

export interface SyntheticSpec {
  name: string;
  hidden: number;
  ffn: number;
  experts: number;
  topK: number;
  layers: number;
  activation: 'swiglu' | 'gelu';
  seed: number;
}

/** A tensor of zeros, which no file holds. */
export const zeros = (rows: number, columns: number): TensorSource => ({
  kind: 'synthetic',
  seed: 0,
  stream: 0,
  scale: 0,
  center: 0,
  rows,
  columns,
});

/** The form of an expert's FFN. */
export interface FfnSpec {
  ffn: number;
  activation: Exclude<Activation, 'identity'>;
  /** How swiglu departs from silu(gate) * up; null: not at all. */
  glu: GluForm | null;
  /** Whether biases are added to its products. */
  biased: boolean;
  /** Width of the rows that its own matrices take and give, between linear maps of the layer; absent: the model's hidden. */
  latent?: number;
}

/**
 * A shared expert, or a part of one that is larger than the routed ones: an expert like others, that every token chooses
 * beside those of the gate. A part has some of the neurons, so that the parts' results add up to the whole's.
 */
export interface SharedExpertSpec extends FfnSpec {
  /** What its result is multiplied by. */
  weight: number;
  /** Multiply it by sigmoid(w · x) too, of a gate of its own. */
  gated: boolean;
}

/** Experts of their own for tokens of some ids, which no other token goes to (modality-isolated routing). */
export interface IsolatedSpec {
  /** So many of those that the gate chooses among, the last ones. */
  experts: number;
  expert: FfnSpec;
  /** Of those tokens, ascending. */
  tokenIds: number[];
}

/** A layer with experts. */
export interface LayerSpec {
  /** The layer's number in the model. */
  layer: number;
  /** All that are placed on workers: those that the gate chooses among first, then the shared ones. */
  experts: number;
  routing: RoutingSpec;
  /** A token's id, from 0 to below this, says which experts it goes to, and the gate only how they are weighed; 0: the gate chooses. */
  vocabulary: number;
  /** So many of those that the gate chooses among, the last ones, give their rows back as they are. */
  identities: number;
  /** Of the experts that every token may choose. */
  expert: FfnSpec;
  /** Null: every token may choose every expert. */
  isolated: IsolatedSpec | null;
  shared: SharedExpertSpec[];
}

/** Those that the gate chooses among. */
export function routedExperts({ experts, shared }: Pick<LayerSpec, 'experts' | 'shared'>): number {
  return experts - shared.length;
}

/** The form of an expert. */
export function formOf(layer: LayerSpec, expert: number): FfnSpec {
  const { isolated, shared } = layer;
  const routed = routedExperts(layer);
  if (expert >= routed) return shared[expert - routed]!;
  return isolated !== null && expert >= routed - isolated.experts ? isolated.expert : layer.expert;
}

/** What the ids of tokens are to some layers. */
export interface TokenIdsUse {
  /** Tokens without one have no experts; otherwise they are like those whose ids are none of the isolated. */
  needed: boolean;
  /** Ids are below this. */
  below: number;
}

/** Null: the ids of tokens are nothing to these layers. */
export function tokenIdsUseOf(
  layers: readonly { vocabulary: number; isolated: object | null }[],
): TokenIdsUse | null {
  const known = layers.map(({ vocabulary }) => vocabulary).filter((vocabulary) => vocabulary > 0);
  if (known.length > 0) return { needed: true, below: Math.min(...known) };
  return layers.some(({ isolated }) => isolated !== null) ? { needed: false, below: 2 ** 32 } : null;
}

/** Experts of a token: those that the gate chooses, and the shared ones. */
export function expertsPerToken({ topK, layers }: Pick<ModelSpec, 'topK' | 'layers'>): number {
  return topK + Math.max(...layers.map(({ shared }) => shared.length));
}

/** What a cluster serves. Every process derives it from ModelSource by itself; `fingerprint` tells whether they agree. */
export interface ModelSpec {
  name: string;
  /** By its name in services/model/families, or "synthetic". */
  family: string;
  fingerprint: string;
  hidden: number;
  /** Experts of a token that the gate chooses, at every layer. */
  topK: number;
  /** The gate's weight multiplies what goes into an expert, not what comes out. */
  weighsInput: boolean;
  /** Layers with experts, ascending. */
  layers: LayerSpec[];
  /** Layers are not x + MoE(RMSNorm(x)), so that only the block alone makes sense. */
  bare: boolean;
  /** Memory that the largest expert takes. */
  expertBytes: number;
  /** Memory that every worker takes beside its experts, for the linear maps that those of a layer share, in all layers. */
  latentBytes: number;
  normEpsilon: number;
  source: ModelSource;
}

/** What a layer's norm multiplies by: weight + offset. */
export interface NormSource {
  /** [1, hidden] */
  weight: TensorSource;
  offset: number;
}

/** The experts that tokens go to by their ids (hash routing). */
export interface TokenExperts {
  /** [vocabulary, topK]; a row may have an expert more than once. Rejects with MODEL_INVALID for experts that are not there. */
  read(): Promise<Uint32Array>;
}

/** What the gate of isolated experts is made of. */
export interface IsolatedGateSource {
  /** [isolated experts, hidden] */
  weight: TensorSource;
  /** [1, isolated experts], added to scores for choosing only. */
  selectionBias: TensorSource | null;
}

/** What a layer's gate is made of; where some of the routed experts are isolated, of that of the others. */
export interface GateSource {
  /** [routed experts, hidden] */
  weight: TensorSource;
  /** [1, routed experts], added to the logits. */
  logitBias: TensorSource | null;
  /** [1, routed experts], added to scores for choosing only. */
  selectionBias: TensorSource | null;
  isolated: IsolatedGateSource | null;
  /** [1, hidden], of the shared experts that are gated. */
  sharedGate: TensorSource | null;
  /** [1, routed experts]: weights of chosen experts are multiplied by these in the end. */
  expertScale: TensorSource | null;
  /** The gate alone takes rows divided by sqrt(mean of squares + epsilon), times weight [1, hidden] and factor. */
  rowNorm: { weight: TensorSource; factor: number; epsilon: number } | null;
  /** Null: the gate chooses. */
  tokenExperts: TokenExperts | null;
}

/** Where the tensors of a model come from; taking a source reads no weights. */
export interface ModelTensors {
  /** In front of the layer's gate and experts; null: there is none. */
  norm(layer: number): NormSource | null;
  /** Of what the block gives, before the residual is added: [1, hidden]; null: none. */
  outputNorm(layer: number): TensorSource | null;
  gate(layer: number): GateSource;
  expert(layer: number, expert: number): ExpertSource;
  close(): void;
}
