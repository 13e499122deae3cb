import type { RoutingBytes, Slab } from '../../native/index.js';
import { invalidArgument, overLimit, type SwitchyardError } from '../common/errors.js';
import type { Chunk } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardRequest } from '../common/generated/switchyard/v1/ForwardRequest.js';
import type { MessageLimit } from '../common/grpc-channel.js';
import { unpackUint32 } from '../common/packed.js';
import { routingBytesOf, tokenIdBytes } from '../transport/chunk-size.js';
import { type ArrivedRows, dropRows } from '../transport/port.js';
import type { BatchPlan } from './plan.js';

/** Rows in memory of a client, in a form of its own: they are read, as BF16, when there is a slab for them. */
export interface StoredRows {
  readonly kind: 'stored';
  /** As BF16; so are the other offsets and lengths. */
  readonly byteLength: number;
  readInto(byteOffset: number, byteLength: number, target: Slab, targetOffset: number): Promise<void>;
}

export type ClientRows = ArrivedRows | StoredRows;

/** Gives up rows that nobody wants any more. */
export function dropClientRows(rows: ClientRows): void {
  if (rows.kind !== 'stored') dropRows(rows);
}

/** A message of a client. */
export interface ClientMessage {
  request: ForwardRequest;
  /** Of its chunk. The receiver owns a slab. */
  rows: ClientRows;
  /** To be called once the rows are taken, so that the client may send more. */
  taken: () => void;
}

/** A client's message of whole tokens that follow what came before. */
export interface CheckedChunk {
  offset: number;
  tokens: number;
  /** Still as they arrived. */
  rows: ClientRows;
  taken: () => void;
  /** Of the right size, not looked at yet. */
  given: RoutingBytes | null;
  /** As the plan allows them. */
  tokenIds: Uint32Array | null;
}

/**
 * Checks a message that must carry the tokens from `offset` on. `idsBefore`: whether the batch's messages before had ids of tokens; null: there
 * were none.
 * @throws INVALID_ARGUMENT or TOO_LARGE, naming field, value and what is allowed.
 */
export function checkChunk(
  { request, rows, taken }: ClientMessage,
  offset: number,
  plan: BatchPlan,
  limit: MessageLimit,
  idsBefore: boolean | null = null,
): CheckedChunk {
  const { chunk } = request;
  if (!chunk) throw invalidArgument('message after the header', request.kind ?? 'empty', 'a chunk');
  const bytes = rows.byteLength;
  if (chunk.offset !== offset) {
    throw invalidArgument('chunk.offset', chunk.offset, `${offset} (offsets ascend without gap or overlap)`);
  }
  const bytesInAll = bytes + routingBytesOf(chunk);
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
  const given = sizedRouting(chunk, tokens, plan);
  return { offset, tokens, rows, taken, given, tokenIds: checkTokenIds(chunk, tokens, plan, idsBefore) };
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

/** The ids of the tokens; null: there are none. */
function checkTokenIds(
  { offset, tokenIds }: Chunk,
  tokens: number,
  plan: BatchPlan,
  idsBefore: boolean | null,
): Uint32Array | null {
  if (!hasIdBytes(tokenIds.byteLength, tokens, plan, idsBefore)) {
    const allowed = idBytesAllowed(tokens, plan, idsBefore);
    throw invalidArgument(`chunk.token_ids at offset ${offset}`, `${tokenIds.byteLength} bytes`, allowed);
  }
  if (tokenIds.byteLength === 0) return null;
  const { below } = plan.tokenIds!;
  const ids = unpackUint32(tokenIds);
  const wrong = ids.findIndex((id) => id >= below);
  if (wrong < 0) return ids;
  throw invalidArgument(`chunk.token_ids of token ${offset + wrong}`, ids[wrong]!, `0 to ${below - 1}`);
}

/** Whether a message may have so many bytes of ids. */
function hasIdBytes(
  bytes: number,
  tokens: number,
  { tokenIds: use }: BatchPlan,
  idsBefore: boolean | null,
): boolean {
  const [none, all] = [bytes === 0, bytes === tokens * tokenIdBytes];
  if (use === null) return none;
  if (use.needed || idsBefore === true) return all;
  return none || (idsBefore === null && all);
}

/** The same in words. */
function idBytesAllowed(
  tokens: number,
  { layers, given, tokenIds: use }: BatchPlan,
  idsBefore: boolean | null,
): string {
  if (use === null)
    return `none, as ${given ? 'options.routing is GIVEN' : 'no layer of the batch chooses experts by them'}`;
  const words = `${tokens * tokenIdBytes} bytes: ${tokens} tokens x ${tokenIdBytes}`;
  if (use.needed) {
    const { layer } = layers.find(({ vocabulary }) => vocabulary > 0)!;
    return `${words}, as layer ${layer} chooses experts by them, or options.routing GIVEN`;
  }
  if (idsBefore === null) return `none, or ${words}`;
  return idsBefore ? `${words}, as the chunks before have them` : 'none, as the chunks before have none';
}

function sizedRouting(chunk: Chunk, tokens: number, plan: BatchPlan): RoutingBytes | null {
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
  return plan.given ? { experts: chunk.experts, weights: chunk.weights } : null;
}
