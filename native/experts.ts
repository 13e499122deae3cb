import type { Slab } from './slab.js';
import type { TensorSource } from './tensors.js';

/**
 * swiglu: down · (silu(gate · x) * (up · x)). geglu: the same with gelu in its tanh form. gelu: down · gelu(up · x), erf form.
 * relu2: down · relu(up · x)².
 * identity: x; its matrices are not read.
 */
export type Activation = 'swiglu' | 'geglu' | 'gelu' | 'relu2' | 'identity';

/**
 * A swiglu that departs from the usual: with g = min(gate · x, gateMax), it is
 * min(g · sigmoid(alpha · g), activationMax) * (clamp(up · x, -upMax, upMax) + upOffset). Null: no bound.
 */
export interface GluForm {
  alpha: number;
  gateMax: number | null;
  activationMax: number | null;
  upMax: number | null;
  upOffset: number;
}

/**
 * Linear maps around the matrices of a layer's experts, which then have `latent` in place of hidden: rows become input · x + inputBias,
 * results output · y. A backend has them once in memory for all experts of the same.
 */
export interface LatentSource {
  /** [latent, hidden] */
  input: TensorSource;
  /** [latent]; null: nothing is added. */
  inputBias: TensorSource | null;
  /** [hidden, latent] */
  output: TensorSource;
}

export interface ExpertSource {
  activation: Activation;
  /** Only for swiglu; null: as usual. */
  glu?: GluForm | null;
  /** [ffn, hidden]; only for swiglu and geglu. */
  gate: TensorSource | null;
  /** [ffn, hidden] */
  up: TensorSource;
  /** [hidden, ffn] */
  down: TensorSource;
  /** Added to the products: [ffn], [ffn] and [hidden]; `gate` is null where there is no gate. */
  bias?: { gate: TensorSource | null; up: TensorSource; down: TensorSource } | null;
  /** Absent or null: rows are taken as they are. */
  latent?: LatentSource | null;
  /** [hidden], added to the result as well. */
  extraBias?: TensorSource | null;
}

/** How many weights are NaN or infinite, of matrices in BF16; those that experts share are counted with the first. */
export interface NonFiniteWeights {
  gate: number;
  up: number;
  down: number;
  latentInput: number;
  latentOutput: number;
  gateBias: number;
  upBias: number;
  downBias: number;
  latentBias: number;
  extraBias: number;
}

/** Weights of one expert, in the backend's own order. */
export interface Expert {
  /** Less what experts share. */
  readonly bytes: number;
  readonly hidden: number;
  readonly ffn: number;
  readonly nonFinite: NonFiniteWeights;
  release(): void;
}

/** Rows of one token batch for one expert. Row `indices[i]` of `rows` gives row `outputRow + i` of `output`. */
export interface ExpertInput {
  rows: Slab;
  indices: Uint32Array;
  output: Slab;
  outputRow: number;
  /** One per index, only for models that weigh the expert's input. */
  inputWeights: Float32Array | null;
}

/** What is computed with one expert. */
export interface ExpertCall {
  expert: Expert;
  inputs: ExpertInput[];
}

export interface BackendDescription {
  kind: 'cpu' | 'cuda';
  /** What computes: an instruction set or a device's name. */
  detail: string;
  /** Host threads that compute, or that drive the device. */
  threads: number;
  /** Calls that keep the device busy when as many are under way. */
  calls: number;
  /** Rows that do, if calls are small: more calls are wanted until there are as many; 0: none are. */
  rows: number;
  /** What experts may take of the device's own memory; null: it is the host's. */
  memoryBytes: number | null;
}

/** When the device began a call, on the clock of process.hrtime, and what it spent on it. */
export interface ComputeTime {
  startedMicroseconds: number;
  seconds: number;
}

/** What a device with memory of its own has done since it was opened, and how it is. */
export interface DeviceFigures {
  copyInSeconds: number;
  computeSeconds: number;
  copyOutSeconds: number;
  memoryUsedBytes: number;
  memoryTotalBytes: number;
  /** Share of the recent past in which a kernel ran, 0 to 1; null where the driver does not tell. */
  utilization: number | null;
}

/** Expert compute on one device. Calls begin in order; a device may overlap them. */
export interface ExpertBackend {
  readonly description: BackendDescription;
  load(source: ExpertSource): Promise<Expert>;
  /**
   * Computes all calls, and resolves with the time of each; if one fails, outputs of all are undefined. Rejects with DEVICE_LOST
   * when the device has failed for good; then every later call does.
   */
  forward(calls: readonly ExpertCall[]): Promise<ComputeTime[]>;
  /** Null if the device is the host. */
  figures(): DeviceFigures | null;
  /** Ends the threads after what is queued. Idempotent. */
  close(): void;
}
