import type { Slab } from './slab.js';

export interface RoutingSpec {
  topK: number;
  /** Over all experts, in float32. */
  score: 'softmax' | 'sigmoid' | 'sqrt-softplus' | 'sparse-mixer';
  /** Of sparse-mixer: how far, as a share of itself, a logit may be below the best that counts beside it. */
  mixerReach?: number;
  /** Logits become cap * tanh(logit / cap) before all else. */
  logitCap?: number;
  /** Divide the chosen weights by their sum. */
  renormalise: boolean;
  /** Or by the root of the sum of their squares, for 2. Absent: 1. */
  normPower?: 1 | 2;
  /** Multiplies the weights after renormalisation. */
  scale: number;
  /** Group-limited routing: experts / groups consecutive experts form a group. 1: none. */
  groups: number;
  groupsChosen: number;
  groupScore: 'max' | 'top2';
  /** The selection score of experts in groups not chosen. */
  masked: 'zero' | 'negative-infinity';
  /** What the weight multiplies. */
  weightOn: 'output' | 'input';
}

/** The experts that every token goes to. */
export interface SharedChoice {
  /** [shared experts] */
  weights: Float32Array;
  /** float32 [1, hidden]: each weight is multiplied by sigmoid(gate · x). Null: they are as they are. Not kept. */
  gate: Slab | null;
}

/** Gate weights [experts, hidden] on native memory, with what the model adds to them. */
export interface GateWeights {
  /** Without the shared ones. */
  readonly experts: number;
  readonly hidden: number;
  release(): void;
}

/** Experts and weights of a chunk's tokens at all layers of a batch, [tokens, layers, topK], in native memory. */
export interface RoutingTable {
  release(): void;
}

/** Routing of consecutive tokens as messages carry it: little-endian uint32 and float32, [tokens, layers, topK]. */
export interface RoutingBytes {
  experts: Uint8Array;
  weights: Uint8Array;
}

/** The first entry of given routing that is wrong. */
export interface RoutingFault {
  field: keyof RoutingBytes;
  /** In what was given. */
  index: number;
  value: number;
}

/** What a group for each worker, [workers], may have: beyond any of these the next token begins another group. */
export interface GroupLimits {
  rowsMax: Float64Array;
  /** Of row indices. */
  entriesMax: Float64Array;
  /** Of a group's rows times `rowCost` and its row indices times `entryCost`. */
  costMax: Float64Array;
  rowCost: number;
  entryCost: number;
}

/** The copies of a layer's experts: those of expert e are `workers[offsets[e]]` to `workers[offsets[e + 1] - 1]`, ascending. */
export interface ExpertCopies {
  /** [experts + 1] */
  offsets: Uint32Array;
  workers: Uint32Array;
}

/** How busy workers are and how fast, [workers]: rows of experts with several copies are split by that. */
export interface WorkerPace {
  /** Until a worker has done what it has. */
  secondsQueued: Float64Array;
  /** Above 0. */
  secondsPerRow: Float64Array;
}

/** Where rows may go. */
export interface GroupTargets {
  copies: ExpertCopies;
  /** Their number. */
  workers: number;
  /** Null: all are idle, and equally fast. */
  pace: WorkerPace | null;
  /**
   * A worker gets as many groups as these ask; all of a token's experts at one worker are in one group. Rejects with
   * INVALID_ARGUMENT if a token alone is beyond a limit. Null: one group per worker.
   */
  limits: GroupLimits | null;
}

/** A token batch of a chunk for one worker: each row once, segments index into the rows. */
export interface RowGroup {
  /** Index as used in `copies`. Null: the experts have no copy; the rows wait to be grouped again. */
  worker: number | null;
  rowCount: number;
  /** [expert, count] pairs in ascending expert order. */
  segments: Uint32Array;
  /** Segment after segment: index of an entry of `tokens`. */
  rowIndices: Uint32Array;
  /** One per entry of rowIndices: the gate's weight; null unless asked for. */
  weights: Float32Array | null;
  /** One per row of the group, ascending: its token in the chunk. */
  tokens: Uint32Array;
}

/** A chunk's rows on their way to the experts. Experts, weights and slots stay in native memory until `release`. */
export interface RoutedRows {
  /** What goes to the experts, to be released apart; null without norm: the rows themselves. */
  readonly normed: Slab | null;
  /** Of the rows that came, those that hold NaN or infinity. */
  readonly nonFinite: number;
  /** Rows per expert. */
  readonly counts: Uint32Array;
  /** By worker and token in ascending order, those without a worker last. */
  readonly groups: readonly RowGroup[];
  readonly seconds: { readonly norm: number; readonly gate: number; readonly group: number };
  /** Idempotent. An operation in flight keeps what it uses. */
  release(): void;
}
