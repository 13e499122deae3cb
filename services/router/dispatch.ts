import type { ExpertCopies, RowGroup, Slab } from '../../native/index.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { EndSignal } from '../common/lifecycle.js';
import { type Trace, until } from '../common/trace.js';
import type { Runtime } from '../runtime/runtime.js';
import type { Link, TokenBatchResult } from '../transport/link.js';
import type { BatchAccount } from './account.js';
import type { FoundLink } from './destinations.js';
import type { Links } from './links.js';
import type { RouterMetrics } from './metrics.js';
import type { PlacementIndex } from './placement.js';
import type { BatchPlan } from './plan.js';

export interface DispatchContext {
  plan: BatchPlan;
  links: Links;
  account: BatchAccount;
  metrics: RouterMetrics;
  trace: Trace | null;
  runtime: Runtime;
  /** On the clock's `now`; Infinity: none. */
  deadlineMs: number;
  signal: EndSignal;
  /** Ends the batch. */
  abort: (error: SwitchyardError) => void;
}

export interface DispatchTarget {
  chunk: number;
  layer: number;
  placement: PlacementIndex;
}

/** The copies of every expert of a layer. Throws WORKER_LOST if the placement does not have it. */
export function requirePlaced(placement: PlacementIndex, layer: number, experts: number): ExpertCopies {
  const copies = placement.copies.get(layer);
  if (copies?.offsets.length === experts + 1) return copies;
  throw new SwitchyardError('WORKER_LOST', `the experts of layer ${layer} are on no worker`, {
    worker: null,
    layer,
    epoch: placement.epoch,
  });
}

/**
 * Sends the groups of a chunk's rows, all at once, and returns the results, in the order of the groups. The rows stay the
 * caller's. The first failure ends the batch; what the others returned is released. `links`: by worker, as found before.
 * @throws WORKER_LOST naming worker, layer and expert; what a worker refused with; the signal's reason.
 */
export async function dispatch(
  groups: readonly RowGroup[],
  links: readonly FoundLink[],
  rows: Slab,
  target: DispatchTarget,
  context: DispatchContext,
): Promise<Slab[]> {
  const ready = groups.map((group) => ({ group, link: linkOf(group, links, target) }));
  const exchanges = ready.map(async ({ group, link }) => {
    try {
      return await exchange(group, link, rows, target, context);
    } catch (error) {
      const failure = context.signal.aborted ? context.signal.reason : describeFailure(error, group, target);
      context.abort(failure);
      throw failure;
    }
  });
  const outcomes = await Promise.allSettled(exchanges);
  const failed = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failed === undefined) {
    return outcomes.map((outcome) => (outcome as PromiseFulfilledResult<Slab>).value);
  }
  for (const outcome of outcomes) if (outcome.status === 'fulfilled') outcome.value.release();
  throw failed.reason;
}

async function exchange(
  group: RowGroup,
  link: Link,
  rows: Slab,
  { chunk, layer, placement }: DispatchTarget,
  context: DispatchContext,
): Promise<Slab> {
  const { plan, account, metrics, signal, runtime } = context;
  const startedMs = runtime.clock.now();
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
        weights: group.weights,
      },
      rows: rows.share(),
      selected: group.tokens,
    },
    signal,
  );
  checkResult(result, plan.combine === 'exact' ? group.rowIndices.length : group.rowCount, plan);
  const seconds = (runtime.clock.now() - startedMs) / 1000;
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
  return result.rows;
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

function linkOf(group: RowGroup, links: readonly FoundLink[], target: DispatchTarget): Link {
  const { link, reason } = links[group.worker!]!;
  if (link !== null) return link;
  throw describeFailure(new SwitchyardError('LINK_LOST', reason), group, target);
}

/** A failure is about a worker's first expert, and says how many others. */
function describeFailure(
  thrown: unknown,
  { worker: index, segments }: RowGroup,
  target: DispatchTarget,
): SwitchyardError {
  const expert = segments[0]!;
  const others = segments.length / 2 - 1;
  const error = asSwitchyardError(thrown);
  const worker = target.placement.workers[index!]!;
  const { layer } = target;
  const place = `worker ${worker}, layer ${layer}, expert ${expert}${others > 0 ? ` and ${others} more` : ''}`;
  return new SwitchyardError(
    error.code === 'LINK_LOST' ? 'WORKER_LOST' : error.code,
    error.code === 'LINK_LOST'
      ? `${place}: the worker is lost: ${error.message}`
      : `${place}: ${error.message}`,
    { worker, layer, expert, chunk: target.chunk, ...error.details },
    { cause: error },
  );
}
