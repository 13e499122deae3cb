import type { RoutedRows, RowGroup, Slab } from '../../native/index.js';
import { asSwitchyardError, type ErrorCode, SwitchyardError } from '../common/errors.js';
import type { Span } from '../runtime/tracer.js';
import type { Link } from '../transport/link.js';
import type { Destination, Destinations } from './destinations.js';
import { type ExchangeContext, exchange, LateError } from './exchange.js';
import type { KnownCluster } from './known-cluster.js';
import type { Links } from './links.js';
import type { PlacementIndex } from './placement.js';

export interface LedgerContext extends ExchangeContext {
  links: Links;
  cluster: KnownCluster;
  destinations: Destinations;
  /** How long rows wait for a worker that holds their experts. */
  readyWaitMs: number;
  /** Ends the batch. */
  abort: (error: SwitchyardError) => void;
}

/** The rows of a chunk at a layer. */
export interface RoutedChunk {
  routed: RoutedRows;
  /** What the experts get; the caller's. */
  rows: Slab;
  chunk: number;
  layer: number;
  /** Of the layer; null: it is not traced. */
  span: Span | null;
  /** As it was when the rows were routed. */
  destination: Destination;
  /** Hears of groups that go to other workers than those that were routed. */
  got: (groups: readonly RowGroup[], placement: PlacementIndex) => void;
}

/** What has become of a group's rows before. */
interface History {
  attempt: number;
  /** Since when they are without an answer for a fault; null: there was none. */
  sinceMs: number | null;
  failure: SwitchyardError | null;
}

/** Faults of a worker that say nothing against the rows: another one with a copy of their experts can take them. */
const moveCodes: ReadonlySet<ErrorCode> = new Set([
  'LINK_LOST',
  'WORKER_LOST',
  'EXPERT_NOT_HERE',
  'DRAINING',
  'DEVICE_LOST',
]);
/** Of these it will say the same of all rows. */
const endingCodes: ReadonlySet<ErrorCode> = new Set(['DRAINING', 'DEVICE_LOST']);
/** A worker that refused is asked again after such a pause at the soonest, unless something has changed. */
const pauseMsMin = 100;
const pauseMsMax = 1_000;

/**
 * Which group of a chunk's rows at a layer is with whom: every slot is in one group that counts, from the routing to the result. The rows of
 * a group that its worker cannot answer go to other copies of their experts, in groups that take its place, and wait where there are none.
 */
export class Ledger {
  /** By group; null: not yet, or other groups have taken its place. */
  private readonly parts: (Slab | null)[];
  /** Links whose workers have refused since rows waited last. */
  private readonly avoided = new Set<Link>();
  private pauses = 0;

  constructor(
    private readonly of: RoutedChunk,
    private readonly context: LedgerContext,
  ) {
    this.parts = of.routed.groups.map(() => null);
  }

  /**
   * Sends the groups, all at once, and resolves with their results, in the order of the groups; null for those that others replaced. The
   * first failure ends the batch; what the others returned is released.
   * @throws WORKER_LOST naming worker, layer and expert; what a worker refused with; the signal's reason.
   */
  async run(): Promise<(Slab | null)[]> {
    const { routed, destination } = this.of;
    const history: History = { attempt: 0, sinceMs: null, failure: null };
    try {
      await allEnded(routed.groups.map((group, index) => this.fill(index, group, destination, history)));
    } catch (error) {
      for (const part of this.parts) part?.release();
      throw error;
    }
    return this.parts;
  }

  private async fill(index: number, group: RowGroup, to: Destination, history: History): Promise<void> {
    try {
      const failure = group.worker === null ? history.failure : await this.answer(index, group, to, history);
      if (this.parts[index] === null) await this.move(index, group, { ...history, failure });
    } catch (error) {
      const { signal, abort } = this.context;
      if (!signal.aborted) abort(asSwitchyardError(error));
      throw error;
    }
  }

  /** Gets a group's results. Returns the fault for which others must have its rows; null: there was none. Throws every other one. */
  private async answer(index: number, group: RowGroup, to: Destination, { attempt }: History) {
    try {
      this.parts[index] = await this.send(group, to.links[group.worker!]!, to, attempt);
      return null;
    } catch (thrown) {
      if (this.context.signal.aborted) throw this.context.signal.reason;
      const failure = this.describe(asSwitchyardError(thrown), group, to);
      if (moveCodes.has(failure.code)) return failure;
      throw failure;
    }
  }

  private async send(
    group: RowGroup,
    link: Link,
    { placement }: Destination,
    attempt: number,
  ): Promise<Slab> {
    const { inUse } = this.context.cluster.placements;
    const { rows, chunk, layer, span } = this.of;
    const isMovable = () => this.isHeldBeside(group, link);
    inUse.enter(placement);
    try {
      return await exchange(
        { group, link, rows, chunk, layer, epoch: placement.epoch, attempt, span, isMovable },
        this.context,
      );
    } catch (error) {
      if (!(error instanceof LateError)) this.avoided.add(link);
      if (endingCodes.has(asSwitchyardError(error).code)) this.context.paces.suspect(link);
      throw error;
    } finally {
      inUse.leave(placement);
    }
  }

  /** Puts groups for workers within reach in the place of one that got no answer, as soon as there are such workers. */
  private async move(index: number, group: RowGroup, history: History): Promise<void> {
    const { clock, rows: operations } = this.context.runtime;
    const { metrics, account, destinations } = this.context;
    const { routed } = this.of;
    const sinceMs = history.sinceMs ?? clock.now();
    let to = this.look();
    while (!isWithinReach(group, to)) {
      await this.wait(group, to, { ...history, sinceMs });
      to = this.look();
    }
    const made = await operations.regroupRows({ routed, group: index, ...destinations.targets(to) });
    for (const at of made.groups.keys()) this.parts[made.first + at] = null;
    this.of.got(made.groups, to.placement);
    const sent = made.groups.filter(({ worker }) => worker !== null);
    if (history.failure !== null) {
      const rows = sent.reduce((sum, { rowIndices }) => sum + rowIndices.length, 0);
      account.failedOver(sent.length, rows);
      metrics.retries.inc(sent.length);
      metrics.failedOverRows.inc(rows);
    }
    const attempt = history.failure === null ? history.attempt : history.attempt + 1;
    const next = { ...history, sinceMs, attempt };
    await allEnded(made.groups.map((one, at) => this.fill(made.first + at, one, to, next)));
  }

  /** Where rows can go now, by the placement of now. */
  private look(): Destination {
    const { cluster, destinations, plan } = this.context;
    const { layer } = this.of;
    return destinations.find(cluster.placement!, layer, plan, this.avoided);
  }

  /** Waits until the cluster has changed, or for a while if a worker refused. Throws WORKER_LOST when there is no time left. */
  private async wait(group: RowGroup, to: Destination, { sinceMs, failure }: History): Promise<void> {
    const { cluster, signal, readyWaitMs, runtime } = this.context;
    const lost = failure ?? this.describe(this.unreached(group, to), group, to);
    const leftMs = sinceMs! + readyWaitMs - runtime.clock.now();
    if (leftMs <= 0) {
      const text = `${lost.message}; no other copy came within reach in ${readyWaitMs} ms`;
      throw new SwitchyardError('WORKER_LOST', text, lost.details, { cause: lost });
    }
    const pauseMs = Math.min(pauseMsMin * 2 ** this.pauses, pauseMsMax);
    const waitMs = this.avoided.size > 0 ? Math.min(pauseMs, leftMs) : leftMs;
    this.pauses += 1;
    await cluster.untilChanged(waitMs, signal);
    this.avoided.clear();
    if (!signal.aborted) return;
    const { code, message, details } = asSwitchyardError(signal.reason);
    if (code !== 'DEADLINE_EXCEEDED') throw signal.reason;
    throw new SwitchyardError(code, `${message} while rows waited for their experts: ${lost.message}`, {
      ...lost.details,
      ...details,
    });
  }

  /** Whether others than the worker at the end of a link, who are not late themselves, hold all experts of a group. */
  private isHeldBeside({ segments }: RowGroup, link: Link): boolean {
    const { cluster, links, paces } = this.context;
    const { copies, workers } = cluster.placement!;
    const placed = copies.get(this.of.layer);
    if (placed === undefined) return false;
    const { offsets, workers: holders } = placed;
    const takes = (worker: number) => {
      const other = links.find(workers[worker]!).link;
      return other !== null && other !== link && !paces.isSuspect(other) && !this.avoided.has(other);
    };
    for (let at = 0; at < segments.length; at += 2) {
      const expert = segments[at]!;
      if (!holders.subarray(offsets[expert]!, offsets[expert + 1]!).some(takes)) return false;
    }
    return true;
  }

  /** Why the first expert of a group that no worker could take has no worker. */
  private unreached({ segments }: RowGroup, { placement }: Destination): SwitchyardError {
    const { copies, workers, lastAt } = placement;
    const { offsets, workers: holders } = copies.get(this.of.layer)!;
    const expert = segments[0]!;
    if (offsets[expert] === offsets[expert + 1]) {
      const worker = lastAt.get(this.of.layer)?.get(expert) ?? null;
      return new SwitchyardError('WORKER_LOST', 'no worker serves it now', { worker });
    }
    const worker = workers[holders[offsets[expert]!]!]!;
    return new SwitchyardError('LINK_LOST', this.context.links.find(worker).reason, { worker });
  }

  /** A failure is about a worker's first expert, and says how many others. */
  private describe(
    error: SwitchyardError,
    { worker: index, segments }: RowGroup,
    to: Destination,
  ): SwitchyardError {
    const { layer, chunk } = this.of;
    const expert = segments[0]!;
    const others = segments.length / 2 - 1;
    const worker = index === null ? (error.details.worker ?? null) : to.placement.workers[index]!;
    const at = worker === null ? '' : `worker ${worker}, `;
    const place = `${at}layer ${layer}, expert ${expert}${others > 0 ? ` and ${others} more` : ''}`;
    const isLost = error.code === 'LINK_LOST';
    return new SwitchyardError(
      isLost ? 'WORKER_LOST' : error.code,
      `${place}: ${isLost ? 'the worker is lost: ' : ''}${error.message}`,
      { worker, layer, expert, chunk, ...error.details },
      { cause: error },
    );
  }
}

/** Whether a worker holds one of a group's experts at least: the rows of the others then wait by themselves. */
function isWithinReach({ segments }: RowGroup, { copies: { offsets } }: Destination): boolean {
  for (let at = 0; at < segments.length; at += 2)
    if (offsets[segments[at]! + 1]! > offsets[segments[at]!]!) return true;
  return false;
}

/** As Promise.all, but settles when all have ended. */
async function allEnded(all: readonly Promise<void>[]): Promise<void> {
  const outcomes = await Promise.allSettled(all);
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
}
