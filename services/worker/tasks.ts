import type { Expert, ExpertCall, Slab } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { Deferred } from '../common/lifecycle.js';
import { LiveSet } from '../common/live.js';
import type { TokenBatch, TokenBatchResult } from '../transport/link.js';

/** A token batch from its arrival to its answer. */
export interface Task {
  readonly batch: TokenBatch;
  readonly router: string;
  readonly answer: Deferred<TokenBatchResult>;
  readonly arrivedMs: number;
  startedMs: number;
  /** One row per entry of rowIndices; taken when the first segment starts. */
  output: Slab | null;
  /** What no call has taken yet. */
  readonly waiting: Set<Part>;
  rowsLeft: number;
  computeSeconds: number;
  /** Operations that use its slabs now. */
  operations: number;
  /** Why it has no answer. */
  failure: SwitchyardError | null;
}

/** A segment, or what is left of it. */
export interface Part {
  readonly task: Task;
  readonly queue: ExpertQueue;
  /** Into the task's rowIndices, and rows of its output. */
  offset: number;
  count: number;
}

/** Rows of a part that one call computes. */
export interface Piece {
  readonly task: Task;
  readonly offset: number;
  readonly count: number;
}

/** What one call computes with an expert. */
export interface ExpertWork {
  readonly queue: ExpertQueue;
  readonly pieces: readonly Piece[];
}

/** An expert with the segments that wait for it, in the order of arrival. */
export class ExpertQueue {
  readonly parts = new LiveSet<Part>();
  /** That wait. */
  rows = 0;
  calls = 0;
  retired = false;
  rowsComputed = 0;
  computeSeconds = 0;

  constructor(
    readonly layer: number,
    readonly index: number,
    readonly expert: Expert,
  ) {}
}

/** What is left of a call without the token batches that have failed. */
export function stillWanted(call: readonly ExpertWork[]): ExpertWork[] {
  return call.flatMap(({ queue, pieces: all }) => {
    const pieces = all.filter(({ task }) => task.failure === null);
    return pieces.length > 0 ? [{ queue, pieces }] : [];
  });
}

export function pieceByPiece(call: readonly ExpertWork[]): ExpertWork[] {
  return call.flatMap(({ queue, pieces }) => pieces.map((piece) => ({ queue, pieces: [piece] })));
}

/** As the backend takes it. */
export function callOf({ queue, pieces }: ExpertWork, weighsInput: boolean): ExpertCall {
  const inputs = pieces.map(({ task, offset, count }) => {
    const { rowIndices, weights } = task.batch.meta;
    return {
      rows: task.batch.rows,
      indices: rowIndices.subarray(offset, offset + count),
      output: task.output!,
      outputRow: offset,
      inputWeights: weighsInput ? weights!.subarray(offset, offset + count) : null,
    };
  });
  return { expert: queue.expert, inputs };
}

export function notHere(worker: string, layer: number, expert: number): SwitchyardError {
  const text = `worker ${worker} does not hold layer ${layer} expert ${expert}`;
  return new SwitchyardError('EXPERT_NOT_HERE', text, { worker, layer, expert });
}
