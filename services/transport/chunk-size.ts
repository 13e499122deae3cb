import assert from 'node:assert/strict';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import { metadataBytesMax } from '../common/grpc-channel.js';
import { modelLimits } from '../model/limits.js';

/** Tokens of a batch, at most: offsets and counts stay exact in every language far beyond this. */
export const tokensMax = 2 ** 32;
/** Tokens of a batch of a session, at most: larger ones are calls of their own, which are cut and flow. */
export const sessionTokensMax = 1024;
/** Bounds of a router's chunk, in tokens. */
export const chunkTokensMax = 8_192;
export const chunkTokensMin = 256;
/** Rows of a router's chunk, and of one message over UCX: large messages, yet several of them under way. */
const chunkRowBytes = 8 * 1024 * 1024;
/** Experts and weights of one chunk over UCX at most; they travel in the message's metadata. */
export const chunkRoutingBytesMax = 512 * 1024;
/** However few rows a chunk has, it takes a page at its receiver. */
const chunkCostMin = 4096;

/** About the rows and routing of a chunk over gRPC: every client's limits allow it, and it flows evenly. */
const messageBytes = 1024 * 1024;

assert(
  modelLimits.layers * modelLimits.topK * 8 <= chunkRoutingBytesMax,
  'the routing of a token fits into a chunk over UCX',
);
assert(chunkRoutingBytesMax < metadataBytesMax, 'the routing of a chunk fits into metadata');

/** The most tokens of a chunk over gRPC, whose receiver takes `bytesMax` in a message; at least one. */
export function tokensPerMessage(
  rowBytes: number,
  routingBytes: number,
  bytesMax = Number.POSITIVE_INFINITY,
): number {
  return Math.max(1, Math.floor(Math.min(messageBytes, bytesMax) / (rowBytes + routingBytes)));
}

/** Of a token's id in a chunk. */
export const tokenIdBytes = 4;
/** What routes a chunk's tokens, beside its rows: experts and weights, or ids, or nothing. */
export type ChunkRouting = Pick<ChunkInput, 'experts' | 'weights' | 'tokenIds'>;

export function routingBytesOf({ experts, weights, tokenIds }: ChunkRouting): number {
  return [experts, weights, tokenIds].reduce((sum, bytes) => sum + (bytes?.length ?? 0), 0);
}

/** What a chunk costs of the receiver's credit, in bytes. */
export function chunkCost(rowBytes: number, routingBytes: number): number {
  return Math.max(chunkCostMin, rowBytes + routingBytes);
}

/** The most tokens of a chunk whose cost is within `costMax`; at least one. */
export function tokensWithin(rowBytes: number, routingBytes: number, costMax: number): number {
  const byCost = Math.floor(costMax / (rowBytes + routingBytes));
  const byRows = Math.floor(chunkRowBytes / rowBytes);
  const byRouting = routingBytes === 0 ? byRows : Math.floor(chunkRoutingBytesMax / routingBytes);
  return Math.max(1, Math.min(byCost, byRows, byRouting));
}

/** Tokens of a router's chunk, unless its configuration or the batch says otherwise: a power of two. */
export function usualChunkTokens(rowBytes: number): number {
  const chosen = Math.min(chunkTokensMax, Math.max(chunkTokensMin, chunkRowBytes / rowBytes));
  return 2 ** Math.floor(Math.log2(chosen));
}
