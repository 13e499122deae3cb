import type { Slab } from '../../native/index.js';
import type { EndSignal } from '../common/lifecycle.js';

/** Metadata of a token batch as code handles it; BatchMeta in proto/switchyard/v1/tokens.proto is its wire form. */
export interface TokenBatchMeta {
  batchId: string;
  chunk: number;
  layer: number;
  attempt: number;
  epoch: number;
  hidden: number;
  rowCount: number;
  /** On the `now` of this process's clock; Infinity: none. */
  deadlineMs: number;
  combine: 'exact' | 'partial';
  /** [expert, count] pairs. */
  segments: Uint32Array;
  /** Segment after segment, index of a row. */
  rowIndices: Uint32Array;
  /** One per entry of rowIndices, when the worker needs them. */
  weights: Float32Array | null;
  /** The router's span of the exchange, as W3C Trace Context has it; empty: it is not traced. */
  traceparent: string;
}

export interface TokenBatch {
  meta: TokenBatchMeta;
  /** [rowCount, hidden] BF16; for a router that sends, rows among which `selected` chooses. */
  rows: Slab;
  /** [rowCount]: the rows to send, where they are not all of them in order. */
  selected?: Uint32Array;
}

export interface TokenBatchResult {
  /** exact: one row per entry of rowIndices; partial: one per row. The receiver owns it. */
  rows: Slab;
  rowCount: number;
  computeSeconds: number;
  queueSeconds: number;
}

/** auto: UCX where both ends have it and reach each other by it, otherwise gRPC. */
export const transportChoices = ['auto', 'ucx', 'grpc'] as const;
export type TransportChoice = (typeof transportChoices)[number];
export type TransportKind = Exclude<TransportChoice, 'auto'>;

/** What the ends of a link have told each other when it was opened. */
export interface LinkLimits {
  /** Rows of one token batch, in bytes: the worker's messageBytesMax. */
  rowBytesMax: number;
  /** Rows of one answer, in bytes: what the router takes. */
  resultBytesMax: number;
  /** What may be outstanding, in bytes of credit: the worker's window for this router. */
  creditBytes: number;
}

export interface LinkStats {
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly messagesSent: number;
  readonly messagesReceived: number;
  /** Answers that came after their exchange had been given up. */
  readonly answersDiscarded: number;
  readonly bytesOutstanding: number;
  readonly creditBytes: number;
  /** Token batches that wait for credit. */
  readonly waiting: number;
}

/**
 * The router's end of the connection to one worker. Credits bound what is outstanding: `exchange`
 * waits for them in the order of the calls.
 */
export interface Link {
  readonly worker: string;
  /** It may turn from gRPC to UCX. */
  readonly transport: TransportKind;
  /** What carries the rows below that: "http2", or UCX's transports, for example "mapped sysv posix". */
  readonly lanes: string;
  /** Why this transport, in words. */
  readonly reason: string;
  readonly stats: LinkStats;
  /** What a token batch on this link and its answer may be. */
  readonly limits: LinkLimits;
  /** Settled when the link is gone: resolves with the reason. */
  readonly closed: Promise<Error>;
  /**
   * Sends a token batch and resolves with its answer. Takes over `batch.rows` and releases it when it
   * is sent. Rejects with LINK_LOST when the link dies, with the worker's error when it refuses, and with
   * CANCELLED or DEADLINE_EXCEEDED from `signal`; a late answer is then discarded.
   */
  exchange(batch: TokenBatch, signal: EndSignal): Promise<TokenBatchResult>;
  /**
   * Ends the exchanges of a batch that have got their credits, with CANCELLED, and tells the worker to drop what it
   * has queued of them; their credit comes back when it has. Those that wait for credits end by their signals.
   */
  cancel(batchId: string): void;
  /** Refuses new exchanges, rejects the outstanding ones with LINK_LOST, ends the stream. */
  close(): void;
}

/** The worker's side: what a transport calls for every token batch that arrives. */
export type TokenBatchHandler = (batch: TokenBatch, router: string) => Promise<TokenBatchResult>;
