import type { SlabRange } from '../../native/index.js';
import type { SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeaderInput } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardSummary } from '../common/generated/switchyard/v1/ForwardSummary.js';
import type { RouterChunk } from './router-chunk.js';
import type { RowsWay } from './summary.js';

/** What a router says of a batch: answers in any order, then the summary. */
export type RouterAnswer = { chunk: RouterChunk; summary: null } | { chunk: null; summary: ForwardSummary };

/** A batch's way to one router and back, whatever carries it. Its way of rows is known with the summary. */
export interface BatchStream extends RowsWay {
  /** host:port, for errors. */
  readonly router: string;
  /** Resolves with what the batch failed with, also when nobody reads its answers. */
  readonly failure: Promise<SwitchyardError>;
  /** Sends the header. Call it first, and once. */
  open(header: ForwardHeaderInput): Promise<void>;
  /** How many tokens a chunk should have. `wished`: what the router makes chunks of. */
  chunkTokens(rowBytes: number, routingBytes: number, wished: number): number;
  /** Resolves when there is room for a chunk; false: the batch is over, and `answers` tells why. */
  reserve(rowBytes: number, routingBytes: number): Promise<boolean>;
  /** Sends a chunk that has room. Resolves when its rows may be changed; false: the batch is over. */
  send(chunk: ChunkInput, rows: Uint8Array | SlabRange): Promise<boolean>;
  /** No more chunks follow. */
  end(): Promise<void>;
  cancel(): void;
  /** Everything the router answers. Throws what the batch failed with. */
  answers(): AsyncGenerator<RouterAnswer, void, void>;
}
