import type { CombinePart, RowGroup, Slab } from '../../native/index.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import { type Trace, until } from '../common/trace.js';
import type { Link, TokenBatchResult } from '../transport/link.js';
import type { BatchAccount } from './account.js';
import type { Links } from './links.js';
import type { RouterMetrics } from './metrics.js';
import { nowhere, type PlacementIndex } from './placement.js';
import type { BatchPlan } from './plan.js';

export interface DispatchContext {
  plan: BatchPlan;
  links: Links;
  account: BatchAccount;
  metrics: RouterMetrics;
  trace: Trace | null;
  /** Unix milliseconds; 0: none. */
  deadlineMs: number;
  signal: AbortSignal;
  /** Ends the batch. */
  abort: (error: SwitchyardError) => void;
}

export interface DispatchTarget {
  chunk: number;
  layer: number;
  placement: PlacementIndex;
}

/** The worker of every expert of a layer. Throws WORKER_LOST if one is on no worker. */
export function requirePlaced(placement: PlacementIndex, layer: number, experts: number): Uint32Array {
  const workerOf = placement.workerOf.get(layer);
  const unplaced = workerOf === undefined ? 0 : workerOf.indexOf(nowhere);
  if (workerOf === undefined || workerOf.length !== experts || unplaced >= 0) {
    const expert = Math.max(0, unplaced);
    throw new SwitchyardError('WORKER_LOST', `expert ${expert} of layer ${layer} is on no worker`, {
      worker: null,
      layer,
      expert,
      epoch: placement.epoch,
    });
  }
  return workerOf;
}

/**
 * Sends the groups of a chunk's rows, all at once, and returns the results, in the order of the groups. The rows stay the
 * caller's. The first failure ends the batch; what the others returned is released.
 * @throws WORKER_LOST naming worker, layer and expert; what a worker refused with; the signal's reason.
 */
export async function dispatch(
  groups: RowGroup[],
  rows: Slab,
  target: DispatchTarget,
  context: DispatchContext,
): Promise<CombinePart[]> {
  const exchanges = groups.map(async (group) => {
    try {
      return await exchange(group, rows, target, context);
    } catch (error) {
      const failure = context.signal.aborted ? context.signal.reason : describeFailure(error, group, target);
      context.abort(failure);
      throw failure;
    }
  });
  const outcomes = await Promise.allSettled(exchanges);
  const failed = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failed === undefined) {
    return outcomes.map((outcome) => (outcome as PromiseFulfilledResult<CombinePart>).value);
  }
  for (const outcome of outcomes) if (outcome.status === 'fulfilled') outcome.value.rows.release();
  throw failed.reason;
}

async function exchange(
  group: RowGroup,
  rows: Slab,
  { chunk, layer, placement }: DispatchTarget,
  context: DispatchContext,
): Promise<CombinePart> {
  const { plan, account, metrics, signal } = context;
  const link: Link = await context.links.require(placement.workers[group.worker]!);
  signal.throwIfAborted();
  const started = performance.now();
  const bytesSent = group.rowCount * plan.rowBytes;
  metrics.sent(link, bytesSent);
  const result = await link.exchange(
    {
      meta: {
        batchId: plan.batchId,
        chunk,
        layer,
        attempt: 0,
        epoch: placement.epoch,
        hidden: plan.hidden,
        rowCount: group.rowCount,
        deadlineMs: context.deadlineMs,
        combine: plan.combine,
        segments: group.segments,
        rowIndices: group.rowIndices,
        weights: plan.combine === 'partial' || plan.weighsInput ? group.weights : null,
      },
      rows: rows.share(),
      selected: group.tokens,
    },
    signal,
  );
  const targets = plan.combine === 'exact' ? group.slots : group.tokens;
  checkResult(result, targets.length, plan);
  const seconds = (performance.now() - started) / 1000;
  const bytesReturned = result.rowCount * plan.rowBytes;
  metrics.returned(link, bytesReturned);
  metrics.seconds.exchange.observe(seconds);
  const details = { batch: plan.batchId, chunk, layer, rows: group.rowCount, bytesSent, bytesReturned };
  context.trace?.beside(`exchange with ${link.worker}`, 'exchange', until(seconds), details);
  const { computeSeconds, queueSeconds } = result;
  account.exchanged({
    rowsSent: group.rowCount,
    bytesSent,
    bytesReturned,
    seconds,
    computeSeconds,
    queueSeconds,
  });
  return { rows: result.rows, targets };
}

/** A worker that returned other rows than it was asked for must not turn into wrong sums. */
function checkResult(result: TokenBatchResult, expected: number, plan: BatchPlan): void {
  const rows: Slab = result.rows;
  if (result.rowCount === expected && rows.byteLength >= expected * plan.rowBytes) return;
  rows.release();
  throw new SwitchyardError(
    'DATA_LOSS',
    `${result.rowCount} rows (${rows.byteLength} bytes) were returned; expected: ${expected} rows of ${plan.rowBytes} bytes`,
    { rows: result.rowCount, expected },
  );
}

function describeFailure(thrown: unknown, group: RowGroup, target: DispatchTarget): SwitchyardError {
  const error = asSwitchyardError(thrown);
  const worker = target.placement.workers[group.worker]!;
  const { layer } = target;
  const experts = group.segments.length / 2;
  const expert = group.segments[0]!;
  const others = experts > 1 ? ` and ${experts - 1} more` : '';
  const place = `worker ${worker}, layer ${layer}, expert ${expert}${others}`;
  return new SwitchyardError(
    error.code === 'LINK_LOST' ? 'WORKER_LOST' : error.code,
    error.code === 'LINK_LOST'
      ? `${place}: the worker is lost: ${error.message}`
      : `${place}: ${error.message}`,
    { worker, layer, expert, chunk: target.chunk, ...error.details },
    { cause: error },
  );
}
