/**
 * The typed face of the addon. Everything that touches token rows is here, runs on the addon's own
 * threads, and resolves a promise on the JS thread; completions are delivered in batches.
 *
 * Rules of the border:
 * - Rows live in slabs. A running operation holds every slab it uses, so `release()` is safe at any
 *   time: the memory goes back when the last operation ends.
 * - Typed arrays passed in must not be written to until the promise settles.
 * - A rejected promise (or a throw, for calls that return no promise) carries a NativeError: `code` is
 *   one of the codes of services/common/errors.ts, `operation` the name of the call.
 */
import { createRequire } from 'node:module';
import type { ExpertBackend, ExpertSource } from './experts.js';
import { addonPath, wrongAddon } from './locate.js';
import type {
  GateWeights,
  GroupTargets,
  RoutedRows,
  RoutingBytes,
  RoutingFault,
  RoutingSpec,
  RoutingTable,
  RowGroup,
  SharedChoice,
} from './routing.js';
import type { Slab } from './slab.js';
import type { TensorSource, WeightFile } from './tensors.js';
import type { Ucx, UcxDescription } from './ucx.js';

export type * from './experts.js';
export type * from './routing.js';
export type * from './slab.js';
export type * from './tensors.js';
export type * from './ucx.js';

/** Part of a slab. */
export interface SlabRange {
  slab: Slab;
  byteOffset: number;
  byteLength: number;
}

/** Part of a segment of shared memory that a client's program has made; it is read and written, never mapped. */
export interface SharedSegment {
  readonly byteLength: number;
  /** Its name is gone: nobody else can open it any more. */
  readonly unlinked: boolean;
  /** Closes it once no operation uses it. Idempotent. */
  release(): void;
}

/** Part of a segment, counted from the segment's own start. */
export interface SegmentRange {
  segment: SharedSegment;
  byteOffset: number;
  byteLength: number;
}

/** What a client's program may keep elements of rows as, in the names of the Open Inference Protocol. */
export type RowDtype = 'BF16' | 'FP16' | 'FP32';

export interface ArenaStats {
  slabs: number;
  bytesInUse: number;
  /** Kept for reuse. */
  bytesCached: number;
  bytesLimit: number;
}

export interface ReferenceLayer {
  /** [hidden] or null: no norm. */
  norm: TensorSource | null;
  epsilon: number;
  /** Added to the norm's weight. */
  normOffset?: number;
  /** [hidden]: RMSNorm of the block's output, with the same epsilon. Absent or null: none. */
  outputNorm?: TensorSource | null;
  gate: TensorSource;
  gateBias: Float32Array | null;
  selectionBias: Float32Array | null;
  routing: RoutingSpec;
  /** The last of the experts are shared. */
  shared?: { weights: Float32Array; gate: TensorSource | null };
  /**
   * Experts that rows of 1 in `rows`, [rows], choose among in place of those of `gate`: they follow them. Given experts of the other kind
   * have weights of NaN and infinite regret.
   */
  isolated?: { gate: TensorSource; selectionBias: Float32Array | null; rows: Uint8Array } | null;
  /** Of the gate alone: rows are divided by sqrt(mean of squares + this), and multiplied by gateScale, [hidden]. */
  rowEpsilon?: number | null;
  gateScale?: Float32Array | null;
  /** [experts]: weights of chosen experts are multiplied by these in the end. */
  expertScale?: Float32Array | null;
  /** Use these experts instead of choosing; for rounding ties and feedback. [rows, topK] */
  given: Uint32Array | null;
  /** Sum with these weights instead of those computed here: a steep gate makes much of how rows were rounded. [rows, topK] */
  givenWeights: Float32Array | null;
  experts: ExpertSource[];
  residual: boolean;
}

export interface ReferenceResult {
  /** [rows, hidden] */
  rows: Float64Array;
  /** [rows, topK], as chosen here from selection scores. */
  experts: Uint32Array;
  /** [rows, topK], of the experts used. */
  weights: Float64Array;
  /** [rows] The largest amount by which an unused expert's selection score exceeds a used one's, or an unused group's; <= 0 if the choice agrees. */
  regret: Float64Array;
  /** [rows] The same in logits, over pairs with equal selection bias; they tell where scores are all but equal. */
  logitRegret: Float64Array;
  /** [rows] What no logit exceeds: |row| · the largest |row of the gate|, and the largest bias. */
  logitScale: Float64Array;
}

/** What this machine has of CUDA, as a build with CUDA finds it. */
export interface CudaDescription {
  /** Version of CUDA built with; null if the backend cannot be loaded. */
  runtime: string | null;
  /** Newest version of CUDA that the driver knows; null without a driver. */
  driver: string | null;
  devices: { name: string; capability: string; memoryBytes: number }[];
  /** Why no device can be used; null if one can. */
  problem: string | null;
}

export interface Addon {
  /**
   * Bounds of the process: slab bytes, with the setting that draws them as errors name it, and threads for row operations.
   * Call once, before anything else.
   */
  configure(options: { slabBytesMax: number; slabSetting?: string; threads: number }): void;
  /** Instruction sets found and libraries built in. */
  describe(): {
    cpu: string;
    isa: string[];
    /** Null when the addon was built without UCX. */
    ucx: UcxDescription | null;
    /** Null when the addon was built without CUDA. */
    cuda: CudaDescription | null;
    cores: number;
  };

  /**
   * Throws RESOURCE_EXHAUSTED at the limit. Contents are undefined. `tailBytes` of capacity are kept behind the slab,
   * for the metadata that UcxChannel.send puts there.
   */
  allocateSlab(byteLength: number, tailBytes?: number): Slab;
  /** Empties a view of a slab, for whoever has it still, and gives its memory up before the garbage collector would. */
  endView(view: Uint8Array): void;
  arenaStats(): ArenaStats;
  /** Gives memory back to the system that released slabs left and nobody needed since the last call. */
  trimSlabs(): void;

  /** Throws MODEL_INVALID, naming the path and the reason. */
  openWeightFile(path: string): WeightFile;
  /** BF16 values of a tensor, [rows, columns]. */
  readTensor(source: TensorSource): Promise<Slab>;
  /** The values of a tensor as they are stored, in float32, [rows, columns]. Synthetic ones are BF16. */
  readFloats(source: TensorSource): Promise<Slab>;
  /**
   * Token embeddings [count, hidden]. A token is a topic's centre plus noise; topics follow a Zipf law of
   * exponent `skew` (0: uniform). Depends on (seed, index of the token) alone.
   */
  synthesizeTokens(options: {
    seed: number;
    firstToken: number;
    count: number;
    hidden: number;
    skew: number;
    topics: number;
  }): Promise<Slab>;

  /** Copies `source` to `target` at `byteOffset`. */
  copyIn(source: Uint8Array | SlabRange, target: Slab, byteOffset: number): Promise<void>;
  /** The first of `rowCount` rows from `firstRow` on that holds NaN or infinity; null if none does. */
  findNonFinite(rows: Slab, firstRow: number, rowCount: number, hidden: number): Promise<number | null>;
  /** Fills `target` with the slab's bytes from `byteOffset` on. */
  copyOut(source: Slab, byteOffset: number, target: Uint8Array): Promise<void>;
  /**
   * The `byteLength` bytes from `byteOffset` on of the segment `key` of POSIX shared memory. Throws INVALID_ARGUMENT unless it is a
   * segment of this process's own user with so many bytes, and none of UCX.
   */
  openSharedSegment(key: string, byteOffset: number, byteLength: number): SharedSegment;
  /** Elements of a client as BF16, to nearest, ties to even, into `target` from `byteOffset` on. */
  narrowRows(
    source: Uint8Array | SegmentRange,
    dtype: RowDtype,
    target: Slab,
    byteOffset: number,
  ): Promise<void>;
  /** Fills `target` with the BF16 elements from `byteOffset` on; as FP16 what is above its range is infinity. */
  widenRows(
    source: Slab,
    byteOffset: number,
    dtype: RowDtype,
    target: Uint8Array | SegmentRange,
  ): Promise<void>;
  /** Fills `bytes` from the segment; rejects with INVALID_ARGUMENT if it became shorter. */
  readSegment(segment: SharedSegment, byteOffset: number, bytes: Uint8Array): Promise<void>;
  writeSegment(segment: SharedSegment, byteOffset: number, bytes: Uint8Array): Promise<void>;
  createGate(options: {
    /** float32 [experts, hidden], as readFloats gives it; not kept. */
    weight: Slab;
    experts: number;
    hidden: number;
    /** Added to the scores' logits (gpt-oss). */
    logitBias: Float32Array | null;
    /** Added for selection only (DeepSeek-V3). */
    selectionBias: Float32Array | null;
    routing: RoutingSpec;
    /** Experts numbered from `experts` on, that every token goes to beside those chosen. */
    shared?: SharedChoice;
    /** [experts]: weights of chosen experts are multiplied by these in the end. */
    expertScale?: Float32Array | null;
    /** Divide a row's logits by sqrt(mean of its squares + this), so that the gate takes rows as if they were normalised. */
    rowEpsilon?: number | null;
    /** [vocabulary, topK]: the experts that rows go to by their tokens' ids; scores then only weigh them. */
    tokenExperts?: Uint32Array | null;
    /** The last so many experts are those of tokens with these ids, ascending, which choose among them alone, and others among the others. */
    isolated?: { experts: number; tokenIds: Uint32Array } | null;
  }): GateWeights;
  /** Throws RESOURCE_EXHAUSTED at the limit of slabs. `experts`: their number at each layer. Contents are undefined. */
  createRoutingTable(options: { tokens: number; topK: number; experts: Uint32Array }): RoutingTable;
  /**
   * Takes the routing of tokens from `first` on. Resolves with the first entry that is wrong, experts before weights: experts must
   * be in range, weights finite.
   */
  writeRouting(options: { table: RoutingTable; first: number } & RoutingBytes): Promise<RoutingFault | null>;
  /** Fills `experts` and `weights` with the routing of tokens from `first` on. */
  readRouting(options: { table: RoutingTable; first: number } & RoutingBytes): Promise<void>;
  /**
   * Takes a chunk's rows from a layer's input to the messages for its workers: norm, scores, choice, groups. Rows are read
   * once from memory and stay in a core's cache from norm to choice.
   */
  routeRows(
    options: {
      rows: Slab;
      rowCount: number;
      hidden: number;
      /** RMSNorm: x / sqrt(mean(x^2) + epsilon) * (weight + offset), float32 inside, BF16 out. Null: none. */
      norm: { weight: Slab; epsilon: number; offset?: number } | null;
      /** `bias`: the feedback loop's, [experts], added for selection only. `given`: the table has the choice; then null is a gate without shared experts. */
      gate: {
        weights: GateWeights;
        bias: Float32Array | null;
        given?: boolean;
        /** [rowCount], of a gate that is to choose: with tokenExperts; with isolated experts it may lack, and then no row goes to these. */
        tokenIds?: Uint32Array | null;
      } | null;
      /** Where the choice for the layer, an index, is taken from; with a gate, where it is put. Null: nowhere. */
      table: { routing: RoutingTable; layer: number } | null;
      /** Whether groups carry weights. */
      weighted: boolean;
    } & GroupTargets,
  ): Promise<RoutedRows>;
  /**
   * Puts other groups in the place of group number `group`, which is refused from now on: its rows, for other workers. `first`: the
   * number of the first of them, beyond all that there were.
   */
  regroupRows(
    options: { routed: RoutedRows; group: number } & GroupTargets,
  ): Promise<{ first: number; groups: RowGroup[] }>;
  /** Copies the rows of `indices` side by side, with `tailBytes` of capacity behind them. The caller owns the slab. */
  packRows(options: { rows: Slab; hidden: number; indices: Uint32Array; tailBytes: number }): Promise<Slab>;
  /**
   * exact: y[t] = residual[t] + sum over j of weights[t, j] * result of (t, j), in the order of j.
   * partial: y[t] = residual[t] + sum of the results of token t, in the order of parts.
   * Float32 sums, rounded once to BF16. `weighted` false: every weight is 1; partial sums are weighted already.
   * Throws DATA_LOSS if a part is missing: no row may be lost.
   */
  combineRows(options: {
    routed: RoutedRows;
    mode: 'exact' | 'partial';
    hidden: number;
    weighted: boolean;
    residual: Slab | null;
    /** RMSNorm of the sums, rounded to BF16, before the residual is added: weight [hidden]. Absent or null: none. */
    outputNorm?: { weight: Slab; epsilon: number } | null;
    /**
     * The results of each of the groups: one row per entry of its rowIndices, or for partial one per row of the group. Null for
     * those in whose place there are others.
     */
    parts: readonly (Slab | null)[];
  }): Promise<{
    rows: Slab;
    /** The number of rows that hold NaN or infinity. */
    nonFinite: number;
  }>;
  /** The worker's side of `partial`: one weighted sum per row of a token batch, in segment order. */
  reduceRows(options: {
    rows: Slab;
    hidden: number;
    rowIndices: Uint32Array;
    weights: Float32Array;
    outputRows: number;
  }): Promise<Slab>;

  createCpuBackend(options: { threads: number }): ExpertBackend;
  /**
   * Slabs allocated from now on are registered with the device. Throws INVALID_ARGUMENT if there is no such device here,
   * or if this process has one open.
   */
  createCudaBackend(options: { device: number }): ExpertBackend;

  /**
   * One layer in float64, with none of the code of the other operations: from the gate's weights as they are stored, and
   * from the others in BF16. Results beyond the range of BF16 are infinite.
   */
  referenceLayer(rows: Float64Array, hidden: number, layer: ReferenceLayer): Promise<ReferenceResult>;

  /** Null when the addon was built without UCX. */
  ucx: Ucx | null;

  /**
   * Ends the process with this exit status if it still runs after `milliseconds`, whatever its threads are at. A later call takes
   * the place of an earlier one.
   */
  endWithin(milliseconds: number, exitStatus: number): void;

  /** The share of memory for weights that the system puts into huge pages, 0 to 1: some is taken, looked at and given back. */
  hugePageShare(): number;

  /** Bare copy speed of this machine: bytes per second, median of several runs over `bytes`. For benchmarks. */
  measureMemcpy(bytes: number): Promise<number>;
  /** Float32 operations a second of one core, by fused multiply-adds that touch no memory: median of several runs. */
  measureFma(): Promise<number>;
}

/** Loaded on first import; a missing or unloadable build says how to make it. */
export const native: Addon = load(addonPath());

function load(path: string): Addon {
  try {
    return createRequire(import.meta.url)(path);
  } catch (error) {
    if (process.env.SWITCHYARD_ADDON === undefined) throw error;
    throw wrongAddon(path, (error as Error).message.split('\n')[0]!);
  }
}
