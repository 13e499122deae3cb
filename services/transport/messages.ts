import { invalidArgument, type SwitchyardError } from '../common/errors.js';
import type { BatchMeta, BatchMetaInput } from '../common/generated/switchyard/v1/BatchMeta.js';
import type {
  ExchangeFailure,
  ExchangeFailureInput,
} from '../common/generated/switchyard/v1/ExchangeFailure.js';
import { packFloat32, packUint32, unpackFloat32, unpackUint32 } from '../common/packed.js';
import { fromFailure, toFailure } from '../common/status.js';
import { traceparentAllowed, traceparentPattern } from '../common/traceparent.js';
import { rowsBytes, tooManyRows } from './limits.js';
import type { TokenBatchMeta } from './link.js';

/** What a worker checks a token batch against before it takes memory for it. */
export interface BatchLimits {
  /** Its name, for errors. */
  worker: string;
  hidden: number;
  /** Of the rows of one token batch. */
  messageBytesMax: number;
}

const batchIdCharactersMax = 256;

/** Least milliseconds on the wire, where 0 is no deadline. */
const remainingMsMin = 1;

/** `nowMs`: on the clock on which the deadline is. */
export function toWireMeta(exchange: number, meta: TokenBatchMeta, nowMs: number): BatchMetaInput {
  return {
    exchange,
    batchId: meta.batchId,
    chunk: meta.chunk,
    layer: meta.layer,
    attempt: meta.attempt,
    epoch: meta.epoch,
    hidden: meta.hidden,
    rows: meta.rowCount,
    remainingMs: remainingMs(meta.deadlineMs, nowMs),
    combine: meta.combine === 'exact' ? 'EXACT' : 'PARTIAL',
    segments: packUint32(meta.segments),
    rowIndices: packUint32(meta.rowIndices),
    ...(meta.weights ? { weights: packFloat32(meta.weights) } : {}),
    traceparent: meta.traceparent,
  };
}

/**
 * The metadata of a token batch with `bytes` of rows, checked for everything that can be known without
 * the model; its deadline is on the clock that says `nowMs`. Throws INVALID_ARGUMENT or TOO_LARGE with the field, the value and what is allowed.
 */
export function fromWireMeta(
  wire: BatchMeta,
  bytes: number,
  limits: BatchLimits,
  nowMs: number,
): TokenBatchMeta {
  const { rows, hidden, combine, batchId } = wire;
  if (batchId === '' || batchId.length > batchIdCharactersMax) {
    throw invalidArgument('batch_id', batchId.slice(0, 32), `1 to ${batchIdCharactersMax} characters`);
  }
  if (hidden !== limits.hidden) throw invalidArgument('hidden', hidden, `${limits.hidden}, as in the model`);
  if (bytes > limits.messageBytesMax) throw tooManyRows(bytes, limits.messageBytesMax, limits.worker);
  if (rows === 0 || rowsBytes(rows, hidden) !== bytes) {
    const held = `${bytes} bytes / (${hidden} x 2)`;
    throw invalidArgument('meta.rows', rows, `the number of rows in the message, above 0: ${held}`);
  }
  if (combine !== 'EXACT' && combine !== 'PARTIAL')
    throw invalidArgument('combine', combine, 'EXACT, PARTIAL');
  const rowIndices = checkedIndices(wire.rowIndices, rows);
  return {
    batchId,
    chunk: wire.chunk,
    layer: wire.layer,
    attempt: wire.attempt,
    epoch: safeInteger('epoch', wire.epoch),
    hidden,
    rowCount: rows,
    deadlineMs: deadlineAfter(safeInteger('remaining_ms', wire.remainingMs), nowMs),
    combine: combine === 'EXACT' ? 'exact' : 'partial',
    segments: checkedSegments(wire.segments, rowIndices.length),
    rowIndices,
    weights: checkedWeights(wire.weights, rowIndices.length, combine === 'PARTIAL'),
    traceparent: checkedTraceparent(wire.traceparent),
  };
}

function checkedTraceparent(value: string): string {
  if (value !== '' && !traceparentPattern.test(value))
    throw invalidArgument('traceparent', value.slice(0, 64), `empty, or ${traceparentAllowed}`);
  return value;
}

/** Clocks of hosts differ, so what crosses between them is the time that is left. */
function remainingMs(deadlineMs: number, nowMs: number): number {
  if (deadlineMs === Number.POSITIVE_INFINITY) return 0;
  return Math.max(remainingMsMin, Math.ceil(deadlineMs - nowMs));
}

function deadlineAfter(remaining: number, nowMs: number): number {
  return remaining === 0 ? Number.POSITIVE_INFINITY : nowMs + remaining;
}

/** uint64 fields are read as numbers; beyond 2^53 they are not exact. */
export function safeInteger(field: string, value: number): number {
  if (!Number.isSafeInteger(value)) throw invalidArgument(field, value, '0 to 2^53 - 1');
  return value;
}

function checkedIndices(bytes: Uint8Array, rows: number): Uint32Array {
  if (bytes.byteLength === 0 || bytes.byteLength % 4 !== 0) {
    throw invalidArgument('row_indices', `${bytes.byteLength} bytes`, 'a multiple of 4 bytes above 0');
  }
  const indices = unpackUint32(bytes);
  const outside = indices.find((index) => index >= rows);
  if (outside !== undefined) throw invalidArgument('row_indices', outside, `0 to ${rows - 1}`);
  return indices;
}

function checkedSegments(bytes: Uint8Array, entries: number): Uint32Array {
  if (bytes.byteLength % 8 !== 0) {
    throw invalidArgument('segments', `${bytes.byteLength} bytes`, 'a multiple of 8 bytes');
  }
  const segments = unpackUint32(bytes);
  let sum = 0;
  for (let i = 1; i < segments.length; i += 2) {
    const count = segments[i]!;
    if (count === 0) throw invalidArgument(`segments[${(i - 1) / 2}].count`, count, '1 or more');
    sum += count;
  }
  if (sum !== entries) throw invalidArgument('segments', `${sum} rows`, `${entries} rows, as in row_indices`);
  return segments;
}

function checkedWeights(bytes: Uint8Array, entries: number, needed: boolean): Float32Array | null {
  if (bytes.byteLength === 0 && !needed) return null;
  if (bytes.byteLength !== 4 * entries) {
    throw invalidArgument(
      'weights',
      `${bytes.byteLength} bytes`,
      `${4 * entries}, 4 for each of row_indices`,
    );
  }
  return unpackFloat32(bytes);
}

export function toWireFailure(exchange: number, thrown: unknown): ExchangeFailureInput {
  return { exchange, ...toFailure(thrown) };
}

/** The worker's error as the router throws it, with the name of the worker added. */
export function fromWireFailure(failure: ExchangeFailure, worker: string): SwitchyardError {
  return fromFailure(failure, { worker });
}
