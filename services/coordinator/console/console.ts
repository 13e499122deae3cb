import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Access } from '../../common/access.js';
import type { HttpPages } from '../../common/http.js';
import type { ModelSpec } from '../../model/spec.js';
import type { Clock, Timer } from '../../runtime/clock.js';
import type { Cluster } from '../cluster.js';
import { Events } from './events.js';
import { Feed } from './feed.js';
import { History } from './history.js';
import { ConsoleRoutes, consolePaths } from './routes.js';
import { describeCopies, describeLoads, describeNodes, summary } from './snapshot.js';
import type { ConsoleState } from './wire.js';

/** How often is looked at what is measured. Pages are told of changes twice as often. */
const lookMs = 1_000;

export interface ConsoleOptions {
  /** Of the coordinator. */
  name: string;
  model: ModelSpec;
  access: Access;
  /** Whether names of other hosts than this one may lead here without a token. */
  insecure: boolean;
  clock: Clock;
  /** Null: this coordinator does not lead. */
  cluster: () => Cluster | null;
  /** Why it does not lead, and where the one that does serves HTTP; empty: that is not known. */
  whyNot: () => string;
  leaderUrl: () => string;
}

const nothing = { nodes: {}, links: {}, traffic: {}, batches: {} };

/** What people see of the cluster in a browser, and what operators may do there. */
export class Console implements HttpPages {
  readonly paths = Object.values(consolePaths);
  private readonly routes: ConsoleRoutes;
  private readonly feed = new Feed();
  private readonly events = new Events();
  private history = new History();
  /** Rows a second by number of the expert, at the last measurement that somebody watched. */
  private perSecond: Float64Array | null = null;
  /** What was packed last, and of what. */
  private packed: { counts: unknown; target: unknown; copies: ConsoleState['copies'] } | null = null;
  /** Whose past that is. */
  private known: Cluster | null = null;
  private readonly timer: Timer;
  /** Until pages are told without a look. */
  private between: Timer | null = null;

  constructor(private readonly options: ConsoleOptions) {
    this.routes = new ConsoleRoutes({
      ...options,
      watch: (response) => this.watch(response),
      changed: () => this.tell(true),
    });
    this.timer = options.clock.every(lookMs, () => this.look()).unref();
  }

  /** The answer to a request of a path below /console. */
  handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    return this.routes.handle(request, response);
  }

  close(): void {
    this.timer.cancel();
    this.between?.cancel();
  }

  private watch(response: ServerResponse): void {
    this.measureLoads();
    this.tell(true);
    this.feed.accept(response);
  }

  private look(): void {
    this.measure();
    this.tell(this.feed.watched);
    if (!this.feed.watched) return;
    this.between = this.options.clock.after(lookMs / 2, () => this.tell(this.feed.watched)).unref();
  }

  private measure(): void {
    const { clock } = this.options;
    const cluster = this.current();
    if (cluster === null) return;
    const nowMs = clock.now();
    if (this.feed.watched) this.measureLoads();
    this.history.look(cluster, nowMs, clock.wall());
  }

  private measureLoads(): void {
    this.perSecond = this.current()?.plans.loads.rates(this.options.clock.now()) ?? null;
  }

  /** Sees what has happened, and tells pages if there are any. */
  private tell(watched: boolean): void {
    const { name, model, clock, whyNot, leaderUrl } = this.options;
    const cluster = this.current();
    const now = summary(name, model, cluster ?? { reason: whyNot(), leaderUrl: leaderUrl() });
    const described = cluster === null ? nothing : describeNodes(cluster, this.history.rates);
    this.events.look(now, described.nodes, clock.wall());
    if (!watched) return;
    this.feed.publish({
      cluster: { now },
      ...described,
      copies: cluster === null ? {} : this.copiesOf(cluster),
      loads: cluster === null ? {} : describeLoads(cluster, this.perSecond),
      samples: this.history.samples,
      events: this.events.events,
    });
  }

  /** Packed anew only when copies move or shall: that is most of the work. */
  private copiesOf(cluster: Cluster): ConsoleState['copies'] {
    const { placement } = cluster.plans;
    const [counts, { target }] = [placement.counts(), placement];
    if (this.packed?.counts !== counts || this.packed.target !== target)
      this.packed = { counts, target, copies: describeCopies(cluster) };
    return this.packed.copies;
  }

  /** Another lead has another past. */
  private current(): Cluster | null {
    const cluster = this.options.cluster();
    if (cluster === this.known) return cluster;
    this.known = cluster;
    this.history = new History();
    this.perSecond = null;
    return cluster;
  }
}
