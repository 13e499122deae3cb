import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ClusterState } from '../common/generated/switchyard/v1/ClusterState.js';
import type { RouterDescription } from '../common/generated/switchyard/v1/RouterDescription.js';
import { abortError, End, type EndSignal } from '../common/lifecycle.js';
import { systemRandom } from '../runtime/system.js';
import { ucxAgainMs } from '../transport/ucx/source.js';
import { allFailed, type Failure } from './all-failed.js';
import type { RouterSession } from './router-session.js';
import { isNear, openRouters } from './routers.js';

/** What opens streams. One that is opening when `over` comes is lost, and rejects at once with its reason. */
export interface SessionOpener {
  /** Rejects with NOT_READY if the router cannot be reached. `others`: whether there are more to ask if this one does not answer. */
  open: (router: RouterDescription, others: boolean, over: EndSignal) => Promise<RouterSession>;
  /** One with UCX, for which no batch waits. Rejects with why there is none. */
  openByUcx: (router: RouterDescription, over: EndSignal) => Promise<RouterSession>;
}

export interface SessionRoutersOptions extends SessionOpener {
  /** Use no more than so many; null: all. */
  routers: number | null;
}

interface Stream {
  /** Opened, or about to be. */
  session: Promise<RouterSession>;
  opened: RouterSession | null;
  /** It was given little time, for there were more to ask. */
  readonly hurried: boolean;
  /** When UCX is worth another try, as performance.now(), if the stream has to do without; Infinity: one is under way, or would be in vain. */
  againAtMs: number;
  tries: number;
}

/** How long a router that no stream could be opened to is left alone. */
const downMs = 5_000;

/** The streams of a session: one to each router that has got a batch. */
export class SessionRouters {
  private readonly streams = new Map<string, Stream>();
  private readonly downUntilMs = new Map<string, number>();
  /** Those that others have replaced, as long as they have batches. */
  private retired: RouterSession[] = [];
  private turn = 0;
  private readonly over = new End();

  constructor(private readonly options: SessionRoutersOptions) {}

  /**
   * The stream for the next batch: to the router on this host, or else on another, that has the fewest batches of this session.
   * Rejects with why none can be opened. `tried`: host:port of those that are not to get it. `first`: who is asked before all others.
   */
  async pick(
    state: ClusterState,
    tried: ReadonlySet<string>,
    first: RouterDescription | null = null,
  ): Promise<RouterSession> {
    const isFirst = ({ address }: RouterDescription) => address === first?.address;
    const others = openRouters(state).filter((router) => !tried.has(router.address) && !isFirst(router));
    const order = this.order(others);
    if (first !== null && !tried.has(first.address)) order.unshift(first);
    if (order.length === 0)
      throw new SwitchyardError('NOT_READY', 'the cluster is not ready: no router takes batches');
    const failures: Failure[] = [];
    for (const [at, router] of order.entries()) {
      try {
        return await this.to(router, at < order.length - 1);
      } catch (error) {
        this.over.throwIfAborted();
        failures.push({ address: router.address, error: asSwitchyardError(error) });
        this.downUntilMs.set(router.address, performance.now() + downMs);
      }
    }
    throw allFailed(failures);
  }

  /** Ends all streams with `reason`. */
  end(reason: SwitchyardError): void {
    this.over.abort(reason);
    for (const { opened } of this.streams.values()) opened?.lose(reason);
    this.streams.clear();
    for (const session of this.retired) session.lose(reason);
  }

  /** Ends the streams that have had no batch for `idleMs`. Returns how many are left. */
  endIdle(idleMs: number, reason: SwitchyardError): number {
    const sinceMs = performance.now() - idleMs;
    for (const [address, { opened }] of this.streams) {
      if (opened === null || opened.idleSinceMs > sinceMs) continue;
      opened.lose(reason);
      this.streams.delete(address);
    }
    return this.streams.size;
  }

  /** Those that were not reached a moment ago come last, before them those of other hosts, and of each those whose stream is opening. */
  private order(routers: readonly RouterDescription[]): RouterDescription[] {
    if (routers.length < 2) return [...routers];
    this.turn += 1;
    const now = performance.now();
    const ranked = routers.map((_, index) => {
      const router = routers[(index + this.turn) % routers.length]!;
      const { address } = router;
      const rank = (this.downUntilMs.get(address) ?? 0) > now ? 2 : isNear(router) ? 0 : 1;
      const stream = this.streams.get(address);
      // It may be that the router stands still.
      const opening = Number(stream?.opened === null);
      return { router, rank, opening, underWay: stream?.opened?.underWay ?? 0 };
    });
    ranked.sort((a, b) => a.rank - b.rank || a.opening - b.opening || a.underWay - b.underWay);
    return ranked.slice(0, this.options.routers ?? ranked.length).map(({ router }) => router);
  }

  /** The stream to a router, which is opened if there is none. Rejects with why it cannot be. */
  private async to(router: RouterDescription, others: boolean): Promise<RouterSession> {
    this.over.throwIfAborted();
    const { address } = router;
    const known = this.streams.get(address);
    if (known?.opened?.failure === null) {
      if (known.opened.mayHaveUcx && performance.now() >= known.againAtMs) void this.openAgain(known, router);
      return known.opened;
    }
    if (known !== undefined && known.opened === null) {
      if (others || !known.hurried) return known.session;
      // The last one to be asked has more time than that.
      const session = await known.session.catch(() => null);
      return session ?? this.to(router, others);
    }
    const session = this.options.open(router, others, this.over);
    const stream: Stream = { session, opened: null, hurried: others, againAtMs: 0, tries: 0 };
    this.streams.set(address, stream);
    try {
      const opened = await stream.session;
      stream.opened = opened;
      stream.againAtMs = performance.now() + ucxAgainMs(systemRandom, stream.tries);
      if (this.over.aborted) opened.lose(abortError(this.over));
      return opened;
    } catch (error) {
      this.streams.delete(address);
      throw error;
    }
  }

  /** Tries to have a stream with UCX in the place of one without. What is under way on that one ends there. */
  private async openAgain(stream: Stream, router: RouterDescription): Promise<void> {
    stream.againAtMs = Number.POSITIVE_INFINITY;
    stream.tries += 1;
    try {
      const opened = await this.options.openByUcx(router, this.over);
      const replaced = new SwitchyardError('CANCELLED', 'a session with UCX has taken its place');
      const isNeeded = !this.over.aborted && this.streams.get(router.address) === stream;
      const old = isNeeded ? stream.opened! : opened;
      if (isNeeded) {
        stream.session = Promise.resolve(opened);
        stream.opened = opened;
      }
      this.retired = [...this.retired.filter(({ failure }) => failure === null), old];
      old.retire(replaced);
    } catch (error) {
      if (asSwitchyardError(error).details.lasts !== true)
        stream.againAtMs = performance.now() + ucxAgainMs(systemRandom, stream.tries);
    }
  }
}
