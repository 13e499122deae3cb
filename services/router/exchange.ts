import type { RowGroup, Slab } from '../../native/index.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import { abortError, End, type EndSignal, onAbort } from '../common/lifecycle.js';
import { type Trace, until } from '../common/trace.js';
import type { Runtime } from '../runtime/runtime.js';
import type { Span } from '../runtime/tracer.js';
import type { Link, TokenBatchResult } from '../transport/link.js';
import type { BatchAccount } from './account.js';
import type { RouterMetrics } from './metrics.js';
import type { BatchPlan } from './plan.js';
import type { WorkerPaces } from './worker-paces.js';

export interface ExchangeContext {
  plan: BatchPlan;
  paces: WorkerPaces;
  account: BatchAccount;
  metrics: RouterMetrics;
  trace: Trace | null;
  runtime: Runtime;
  /** On the clock's `now`; Infinity: none. */
  deadlineMs: number;
  signal: EndSignal;
}

/** What goes to a worker. */
export interface Sending {
  group: RowGroup;
  link: Link;
  /** Among which the group chooses; they stay the caller's. */
  rows: Slab;
  chunk: number;
  layer: number;
  epoch: number;
  attempt: number;
  /** Of the layer; null: it is not traced. */
  span: Span | null;
  /** Whether somebody else could take a late group's rows. */
  isMovable: () => boolean;
}

/** The answer did not come in the time that the worker usually takes, and others have what it has. */
export class LateError extends SwitchyardError {
  constructor(worker: string, ms: number) {
    super('WORKER_LOST', `worker ${worker} has not answered within ${ms.toFixed(0)} ms`, { worker });
  }
}

/**
 * Sends a group and resolves with its results. Rejects as Link.exchange does, with DATA_LOSS for other rows than were asked for, and with
 * a LateError; what comes after that is counted and dropped.
 */
export function exchange(sending: Sending, context: ExchangeContext): Promise<Slab> {
  const { group, link } = sending;
  const { plan, paces, metrics, signal, runtime } = context;
  // The link may move meanwhile: rows and their answer count alike.
  const way = { worker: link.worker, transport: link.transport };
  const span = sending.span?.begin('exchange', {
    ...way,
    rows: group.rowCount,
    attempt: sending.attempt,
  });
  return new Promise((resolve, reject) => {
    let isGivenUp = false;
    // What is given up outlives the batch: its answer tells that the worker is no longer late.
    const end = new End();
    const forget = onAbort(signal, () => {
      if (!isGivenUp) end.abort(abortError(signal));
    });
    const sent = {
      link,
      rows: group.rowIndices.length,
      sentMs: runtime.clock.now(),
      attempt: sending.attempt,
      late: () => {
        if (!sending.isMovable()) return false;
        isGivenUp = true;
        reject(new LateError(link.worker, runtime.clock.now() - sent.sentMs));
        return true;
      },
    };
    paces.sent(sent);
    metrics.sent(way, group.rowCount * plan.rowBytes);
    link.exchange(tokenBatch(sending, span?.traceparent ?? '', context), end).then(
      (result) => {
        forget();
        span?.end();
        paces.answered(sent, result.computeSeconds);
        if (isGivenUp) {
          result.rows.release();
          metrics.droppedRows.inc(sent.rows);
          context.account.droppedRows += sent.rows;
          return;
        }
        try {
          checkResult(result, group, plan);
        } catch (error) {
          reject(error);
          return;
        }
        metrics.returned(way, result.rowCount * plan.rowBytes);
        record(sending, result, (runtime.clock.now() - sent.sentMs) / 1000, context);
        resolve(result.rows);
      },
      (error) => {
        forget();
        span?.end(asSwitchyardError(error));
        paces.forget(sent);
        reject(error);
      },
    );
  });
}

function tokenBatch(sending: Sending, traceparent: string, { plan, deadlineMs }: ExchangeContext) {
  const { group, rows, chunk, layer, epoch, attempt } = sending;
  return {
    meta: {
      batchId: plan.batchId,
      chunk,
      layer,
      attempt,
      epoch,
      hidden: plan.hidden,
      rowCount: group.rowCount,
      deadlineMs,
      combine: plan.combine,
      segments: group.segments,
      rowIndices: group.rowIndices,
      weights: group.weights,
      traceparent,
    },
    rows: rows.share(),
    selected: group.tokens,
  };
}

/** A worker that returned other rows than it was asked for must not turn into wrong sums. */
function checkResult({ rows, rowCount }: TokenBatchResult, group: RowGroup, plan: BatchPlan): void {
  const expected = plan.combine === 'exact' ? group.rowIndices.length : group.rowCount;
  if (rowCount === expected && rows.byteLength >= expected * plan.rowBytes) return;
  const bytes = rows.byteLength;
  rows.release();
  throw new SwitchyardError(
    'DATA_LOSS',
    `${rowCount} rows (${bytes} bytes) were returned; expected: ${expected} rows of ${plan.rowBytes} bytes`,
    { rows: rowCount, expected },
  );
}

function record(
  { group, link, chunk, layer }: Sending,
  { rowCount, computeSeconds, queueSeconds }: TokenBatchResult,
  seconds: number,
  { plan, account, metrics, trace }: ExchangeContext,
): void {
  const bytesSent = group.rowCount * plan.rowBytes;
  const bytesReturned = rowCount * plan.rowBytes;
  metrics.seconds.exchange.observe(seconds);
  const details = { batch: plan.batchId, chunk, layer, rows: group.rowCount, bytesSent, bytesReturned };
  trace?.beside(`exchange with ${link.worker}`, 'exchange', until(seconds), details);
  account.exchanged({
    rowsSent: group.rowCount,
    bytesSent,
    bytesReturned,
    seconds,
    computeSeconds,
    queueSeconds,
  });
}
