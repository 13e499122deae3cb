import { invalidArgument, overLimit, type SwitchyardError } from '../common/errors.js';
import type { Chunk } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardRequest } from '../common/generated/switchyard/v1/ForwardRequest.js';
import type { ArrivedRows } from '../transport/port.js';
import type { BatchPlan } from './plan.js';
import { allocateRouting, type RoutingRows } from './routing-rows.js';

/** A message of a client. */
export interface ClientMessage {
  request: ForwardRequest;
  /** Of its chunk. The receiver owns a slab. */
  rows: ArrivedRows;
  /** To be called once the rows are taken, so that the client may send more. */
  taken: () => void;
}

/** What one message of a client may carry: bytes of rows and routing, and whose messageBytesMax says so. */
export interface MessageLimit {
  bytesMax: number;
  node: string;
}

/** A client's message after every check: whole tokens that follow what came before. */
export interface CheckedChunk {
  offset: number;
  tokens: number;
  /** Still as they arrived. */
  rows: ArrivedRows;
  taken: () => void;
  given: RoutingRows | null;
}

/**
 * Checks a message that must carry the tokens from `offset` on.
 * @throws INVALID_ARGUMENT or TOO_LARGE, naming field, value and what is allowed.
 */
export function checkChunk(
  { request, rows, taken }: ClientMessage,
  offset: number,
  plan: BatchPlan,
  limit: MessageLimit,
): CheckedChunk {
  const { chunk } = request;
  if (!chunk) throw invalidArgument('message after the header', request.kind ?? 'empty', 'a chunk');
  const bytes = rows.byteLength;
  if (chunk.offset !== offset) {
    throw invalidArgument('chunk.offset', chunk.offset, `${offset} (offsets ascend without gap or overlap)`);
  }
  const bytesInAll = bytes + chunk.experts.byteLength + chunk.weights.byteLength;
  if (bytesInAll > limit.bytesMax) {
    const by = { setting: 'messageBytesMax', node: limit.node };
    throw overLimit('TOO_LARGE', `bytes of the chunk at offset ${offset}`, bytesInAll, limit.bytesMax, by);
  }
  const tokens = bytes / plan.rowBytes;
  if (tokens < 1 || !Number.isInteger(tokens)) {
    const allowed = `whole tokens of ${plan.rowBytes} bytes (${plan.hidden} BF16), at least one`;
    throw invalidArgument(`chunk.rows at offset ${offset}`, `${bytes} bytes`, allowed);
  }
  if (offset + tokens > plan.tokens) {
    const allowed = `at most the ${plan.tokens} tokens that the header announced`;
    throw invalidArgument(`chunk at offset ${offset}`, `up to token ${offset + tokens}`, allowed);
  }
  return { offset, tokens, rows, taken, given: checkRouting(chunk, tokens, plan) };
}

/** The error for a client that half-closed early. */
export function tooFewTokens(received: number, plan: BatchPlan): SwitchyardError {
  return invalidArgument('tokens received', received, `the ${plan.tokens} tokens that the header announced`);
}

/** The error for a client that goes on after its last token. */
export function tooManyTokens(plan: BatchPlan): SwitchyardError {
  const allowed = `half-close after the ${plan.tokens} tokens that the header announced`;
  return invalidArgument('message after the last token', 'another message', allowed);
}

function checkRouting(chunk: Chunk, tokens: number, plan: BatchPlan): RoutingRows | null {
  const perToken = plan.layers.length * plan.topK;
  const expected = plan.given ? tokens * perToken * 4 : 0;
  for (const field of ['experts', 'weights'] as const) {
    if (chunk[field].byteLength === expected) continue;
    const allowed = plan.given
      ? `${expected} bytes: ${tokens} tokens x ${plan.layers.length} layers x ${plan.topK} experts x 4`
      : 'none, unless options.routing is GIVEN';
    throw invalidArgument(
      `chunk.${field} at offset ${chunk.offset}`,
      `${chunk[field].byteLength} bytes`,
      allowed,
    );
  }
  if (!plan.given) return null;
  const { experts, weights } = allocateRouting(plan, tokens);
  new Uint8Array(experts.buffer).set(chunk.experts);
  new Uint8Array(weights.buffer).set(chunk.weights);
  checkExperts(experts, chunk.offset, plan);
  checkWeights(weights, chunk.offset, plan);
  return { experts, weights };
}

function checkExperts(experts: Uint32Array, offset: number, plan: BatchPlan): void {
  const { layers, topK } = plan;
  for (let start = 0, layer = 0; start < experts.length; start += topK) {
    const limit = layers[layer]!.experts;
    for (let choice = start; choice < start + topK; choice += 1) {
      const expert = experts[choice]!;
      if (expert >= limit) {
        throw invalidArgument(place('experts', choice, offset, plan), expert, `0 to ${limit - 1}`);
      }
      for (let other = start; other < choice; other += 1) {
        if (experts[other] !== expert) continue;
        throw invalidArgument(
          place('experts', choice, offset, plan),
          expert,
          'experts distinct within a token',
        );
      }
    }
    layer = layer + 1 === layers.length ? 0 : layer + 1;
  }
}

function checkWeights(weights: Float32Array, offset: number, plan: BatchPlan): void {
  for (let index = 0; index < weights.length; index += 1) {
    const weight = weights[index]!;
    if (!Number.isFinite(weight)) {
      throw invalidArgument(place('weights', index, offset, plan), weight, 'finite numbers');
    }
  }
}

function place(field: string, index: number, offset: number, { layers, topK }: BatchPlan): string {
  const token = offset + Math.floor(index / (layers.length * topK));
  const layer = layers[Math.floor(index / topK) % layers.length]!.layer;
  return `chunk.${field} of token ${token}, layer ${layer}, choice ${index % topK}`;
}
