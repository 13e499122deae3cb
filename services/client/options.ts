import type { ForwardOptionsInput } from '../common/generated/switchyard/v1/ForwardOptions.js';
import { packFloat32, packUint32 } from '../common/packed.js';
import type { ChunkRouting } from '../transport/chunk-size.js';
import type { RoutingRows } from './forward.js';

/** The router's own deadline comes first: its error says where the time went. */
export const deadlineGraceMs = 2_000;
/** Milliseconds that a batch may take at most, about 23 days: what timers can wait for, with room for who adds to it. */
export const deadlineMsMax = 2_000_000_000;
/** The largest number that most fields of the protocol hold. */
export const uint32Max = 2 ** 32 - 1;

/** What is to be done with the tokens of a batch. */
export interface BatchOptions {
  batchId?: string;
  /** Model layers, both included. Default: all. */
  layers?: { first: number; last: number };
  /** RMSNorm before the gate. Default: the cluster's, which is on. */
  norm?: boolean;
  /** Add the layer's input to its output. Default: the cluster's, which is on. */
  residual?: boolean;
  combine?: 'exact' | 'partial';
  /** Selection bias from the load feedback loop. Default: as the cluster is configured. */
  feedback?: boolean;
  returnRouting?: boolean;
  /** End the batch at the first token that holds NaN or infinity, as it comes or after a layer, instead of counting them. */
  refuseNonFinite?: boolean;
  /** Tokens per chunk of the routers' pipeline, up to 8,192. 0, the default: the routers' choice. */
  chunkTokens?: number;
  /** The batch ends with DEADLINE_EXCEEDED if it takes longer, up to 2,000,000,000 ms. 0, the default: no deadline. */
  deadlineMs?: number;
  /** The span that waits for the batch, as W3C Trace Context has it: the spans of the cluster are below it. Default: none. */
  traceparent?: string;
}

const toggle = (value: boolean | undefined) => (value === undefined ? 'DEFAULT' : value ? 'ON' : 'OFF');

/** `given`: the batch brings its routing. */
export function protocolOptions(options: BatchOptions, given: boolean): ForwardOptionsInput {
  return {
    norm: toggle(options.norm),
    residual: toggle(options.residual),
    combine: options.combine === 'partial' ? 'PARTIAL' : 'EXACT',
    feedback: toggle(options.feedback),
    routing: given ? 'GIVEN' : 'GATE',
    returnRouting: options.returnRouting ?? false,
    refuseNonFinite: options.refuseNonFinite ?? false,
    chunkTokens: options.chunkTokens ?? 0,
  };
}

/** What routes a chunk's tokens, as it carries that. */
export function chunkRouting(
  given: RoutingRows | null | undefined,
  tokenIds: Uint32Array | null | undefined,
): ChunkRouting {
  return {
    ...(given && { experts: packUint32(given.experts), weights: packFloat32(given.weights) }),
    ...(tokenIds && { tokenIds: packUint32(tokenIds) }),
  };
}

/** The header's range of layers. */
export function protocolLayers({ layers }: BatchOptions): { firstLayer: number; lastLayer?: number } {
  return layers === undefined ? { firstLayer: 0 } : { firstLayer: layers.first, lastLayer: layers.last };
}
