import type { SlabRange } from '../../native/index.js';
import type { SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardSummaryInput } from '../common/generated/switchyard/v1/ForwardSummary.js';
import type { TransportKind } from '../transport/link.js';
import type { BatchEnd } from './batch-end.js';
import type { Reservation } from './budget.js';
import type { RequestSource } from './ingest.js';

/** What carries the rows of a batch, and its lanes, for example "mapped posix". */
export interface RowsWay {
  transport: TransportKind;
  lanes: string;
}

/**
 * One batch of a client, whatever protocol it came by: its header and chunks come in, its answers and summary go out, and it
 * ends once, by `complete` or `fail`.
 */
export interface BatchCall extends RequestSource {
  /** The connection that it came by. */
  readonly peer: string;
  /** What its client calls it, as far as that has come and before it is checked; empty: nothing. */
  readonly batchId: string;
  /** How loudly its good end is logged. */
  readonly loggedAt: 'info' | 'debug';
  /** The client's span, as the metadata of its call has it; empty: it has none. */
  readonly traceparent: string;
  /** What ends it early, and everything that works for it. */
  readonly end: BatchEnd;
  /** Call it first, and once. The deadline that the header has counts from here on. */
  header(): Promise<ForwardHeader>;
  /** The batch is no longer busy: its client has its whole time from now on. */
  idle(): void;
  /** How many tokens an answer may have: as large as they are, or as their routing is. */
  answerTokensMax(rowBytes: number, routingBytes: number): number;
  /** Whether an answer goes out from the slab that its rows are in, or is copied first. */
  answersInPlace(chunk: ChunkInput, rows: SlabRange): boolean;
  /**
   * Sends an answer: rows of a slab that nobody writes to any more. Resolves when the slab may be released. `held`
   * counts what leaves after that, and is released when it has left.
   */
  answer(chunk: ChunkInput, rows: SlabRange, held: Reservation): Promise<void>;
  /** Known from the first chunk on. */
  way(): Promise<RowsWay>;
  /** Ends it well. Rejects, without having ended it, with the reason of `end` if that comes first. */
  complete(summary: ForwardSummaryInput): Promise<void>;
  /** Ends it with an error. */
  fail(error: SwitchyardError): void;
}
