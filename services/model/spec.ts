import type { Activation, ExpertSource, RoutingSpec, TensorSource } from '../../native/index.js';

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
  activation: Activation;
  seed: number;
}

export interface LayerSpec {
  /** The layer's number in the model. */
  layer: number;
  experts: number;
}

/** What a cluster serves. Every process derives it from ModelSource by itself; `fingerprint` tells whether they agree. */
export interface ModelSpec {
  name: string;
  family: 'synthetic' | 'mixtral' | 'qwen3_moe';
  fingerprint: string;
  hidden: number;
  ffn: number;
  activation: Activation;
  routing: RoutingSpec;
  /** Layers with experts, ascending. */
  layers: LayerSpec[];
  normEpsilon: number;
  source: ModelSource;
}

/** Where the tensors of a model come from; taking a source reads no weights. */
export interface ModelTensors {
  /** [1, hidden]: the weight of the norm in front of the layer's gate and experts. */
  norm(layer: number): TensorSource;
  /** [experts, hidden] */
  gate(layer: number): TensorSource;
  expert(layer: number, expert: number): ExpertSource;
  close(): void;
}
