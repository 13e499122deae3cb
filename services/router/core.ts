import { SwitchyardError } from '../common/errors.js';
import type { ExpertMetrics } from '../common/expert-metrics.js';
import type { CoordinatorMessage } from '../common/generated/switchyard/v1/CoordinatorMessage.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { NodeMessageInput } from '../common/generated/switchyard/v1/NodeMessage.js';
import type { RouterMessageInput } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessage } from '../common/generated/switchyard/v1/WorkerMessage.js';
import type { Logger } from '../common/log.js';
import type { Registry } from '../common/metrics.js';
import type { Trace } from '../common/trace.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
import type { Dialer } from '../runtime/duplex.js';
import type { Runtime } from '../runtime/runtime.js';
import type { Tracer } from '../runtime/tracer.js';
import type { UcxSource } from '../transport/ucx/source.js';
import { Batches } from './batches.js';
import { ByteBudget } from './budget.js';
import type { RouterSettings } from './config.js';
import { KnownCluster } from './known-cluster.js';
import { Links } from './links.js';
import { createRouterMetrics, type RouterMetrics } from './metrics.js';
import { RouterReporter } from './report.js';
import { RowWork } from './row-work.js';
import type { RouterWeights } from './weights.js';

export interface RouterCoreOptions {
  config: RouterSettings;
  /** Unique among the routers of the cluster. */
  name: string;
  /** The node token, for the coordinator alone. */
  token: string | null;
  log: Logger;
  registry: Registry;
  experts: ExpertMetrics;
  trace: Trace | null;
  /** Null: nothing is traced. */
  tracer: Tracer | null;
  onUnknown: OnUnknown;
  runtime: Runtime;
  /** The name of this host. */
  machine: string;
  /** How the coordinator and the workers are reached. */
  dial: {
    coordinator: Dialer<CoordinatorMessage, NodeMessageInput>;
    worker: Dialer<WorkerMessage, RouterMessageInput>;
  };
  /** Null: this process has none. */
  ucx: UcxSource | null;
  /** Gates and norms of the model that the coordinator describes. */
  loadWeights: (description: ModelDescription) => Promise<RouterWeights>;
  /** Called when what the router knows of its cluster may have changed. */
  onChange: () => void;
  /** Called when every expert can be reached from here, and when no longer. */
  onReady: (ready: boolean) => void;
}

/** What a router tells the coordinator of its surroundings. */
export interface RouterIdentity {
  /** host:port under which clients reach it. */
  address: string;
  /** URL, or empty. */
  metricsUrl: string;
  pid: number;
}

/** What a router is without servers: its membership, its links and the batches that it is given. */
export class RouterCore {
  readonly budget: ByteBudget;
  readonly links: Links;
  readonly cluster: KnownCluster;
  readonly batches: Batches;
  readonly metrics: RouterMetrics;
  /** The rows that the router has at hand. */
  readonly work = new RowWork();
  private draining = false;

  constructor(private readonly options: RouterCoreOptions) {
    const { config, name, token, dial, ucx, log, trace, tracer, runtime, onUnknown } = options;
    const budget = new ByteBudget(config.budgetBytes, `router ${name}`);
    const reporter = new RouterReporter({
      runtime,
      bytesInFlight: () => budget.used,
      links: () => this.links,
      notReady: () => this.readiness().reason,
      inUse: () => this.cluster.placements.oldest,
      held: () => this.cluster.placements.held,
      batches: () => ({ live: this.batches.liveCount, oldest: this.batches.oldest() }),
      traffic: () => this.metrics.traffic(),
    });
    const { leaseMs, host, transport } = config;
    const links = new Links({
      router: name,
      leaseMs,
      host,
      machine: options.machine,
      transport,
      dial: dial.worker,
      ucx,
      onUnknown,
      log,
      runtime,
      onChange: () => this.cluster.notify(),
    });
    const cluster = new KnownCluster({
      token,
      dial: dial.coordinator,
      links,
      runtime,
      loadWeights: options.loadWeights,
      reporter,
      leaseMs,
      onUnknown,
      log,
      onChange: () => {
        options.onChange();
        metrics.keepWorkers(new Set(cluster.view?.nodes.map(({ name }) => name)));
      },
      onReady: (ready) => {
        reporter.flush();
        options.onReady(ready);
      },
    });
    const metrics = createRouterMetrics(options.registry, options.experts, {
      connected: () => this.cluster.connected,
      batchesLive: () => this.batches.liveCount,
      budget: () => budget,
      links: () => links.open(),
      arena: () => runtime.rows.arenaStats(),
    });
    this.batches = new Batches({
      config,
      router: name,
      cluster,
      links,
      budget,
      reporter,
      metrics,
      trace,
      tracer,
      log,
      runtime,
      work: this.work,
    });
    this.budget = budget;
    this.links = links;
    this.cluster = cluster;
    this.metrics = metrics;
  }

  /**
   * Joins the cluster. Resolves when the membership is over: null after `leave`, otherwise why this
   * router cannot be a member; batches are then refused with the same reason.
   */
  start(coordinators: readonly string[], identity: RouterIdentity): Promise<SwitchyardError | null> {
    const { config, name } = this.options;
    return this.cluster.run(coordinators, {
      role: 'ROUTER',
      name,
      host: this.options.machine,
      device: 'cpu',
      threads: config.threads,
      memoryBytes: config.budgetBytes,
      messageBytesMax: config.messageBytesMax,
      ...identity,
    });
  }

  readiness(): { ready: boolean; reason: string } {
    if (this.draining) return { ready: false, reason: 'the router is stopping' };
    return this.cluster.readiness();
  }

  /** Why batches of these layers are not computed now, in words; empty: they are. */
  whyNot(layers: readonly number[]): string {
    return this.draining ? this.readiness().reason : this.cluster.whyNotReached(layers);
  }

  /** Refuses new batches, and waits for those under way up to `drainMs`; then it ends them. */
  async drain(reason: string): Promise<void> {
    const { config, runtime } = this.options;
    const { drainMs } = config;
    this.draining = true;
    const drained = this.batches.drain(reason);
    // Told early, the coordinator sends nobody here any more.
    this.cluster.leaving(reason);
    const timer = runtime.clock.after(drainMs, () => {
      const message = `the router is stopping (${reason}) and waited ${drainMs} ms for this batch`;
      this.batches.abort(new SwitchyardError('DRAINING', message, { reason, drainMs }));
    });
    await drained;
    timer.cancel();
  }

  /** Leaves the cluster, once no batch is under way. */
  async leave(reason: string): Promise<void> {
    await this.cluster.leave(reason);
    this.links.close();
    this.cluster.release();
  }
}
