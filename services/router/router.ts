import { hostname } from 'node:os';
import { describeCluster } from '../common/describe-cluster.js';
import { SwitchyardError } from '../common/errors.js';
import type { ExpertMetrics } from '../common/expert-metrics.js';
import type { ClusterStateInput } from '../common/generated/switchyard/v1/ClusterState.js';
import type { InferenceHandlers } from '../common/generated/switchyard/v1/Inference.js';
import type { ModelDescriptionInput } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { PlacementInput } from '../common/generated/switchyard/v1/Placement.js';
import { dialCoordinator, dialWorker } from '../common/grpc-duplex.js';
import type { GrpcService } from '../common/grpc-server.js';
import type { Logger } from '../common/log.js';
import type { Registry } from '../common/metrics.js';
import { services } from '../common/protocol.js';
import { toServiceError } from '../common/status.js';
import type { Trace } from '../common/trace.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
import { clusterState, Watchers } from '../common/watchers.js';
import type { Runtime } from '../runtime/runtime.js';
import type { UcxAcceptor } from '../transport/handshake.js';
import { nativeUcx } from '../transport/ucx/port.js';
import { Batches } from './batches.js';
import { ByteBudget } from './budget.js';
import { ChannelWindows } from './channel-windows.js';
import { ClientChannels } from './client-channels.js';
import { ClientSession, type SessionStream } from './client-session.js';
import { channelBytesMax, messageRoomBytes, type RouterSettings } from './config.js';
import { KnownCluster } from './known-cluster.js';
import { Links } from './links.js';
import { loadWeights } from './load-weights.js';
import { createRouterMetrics, type RouterMetrics } from './metrics.js';
import { OneShotCall } from './one-shot-call.js';
import { describePlacement } from './placement.js';
import { RouterReporter } from './report.js';

export interface RouterOptions {
  config: RouterSettings;
  /** Unique among the routers of the cluster. */
  name: string;
  /** The node token, for the coordinator alone. */
  token: string | null;
  log: Logger;
  registry: Registry;
  experts: ExpertMetrics;
  trace: Trace | null;
  onUnknown: OnUnknown;
  runtime: Runtime;
  /** Called when every expert can be reached from here, and when no longer. */
  onReady?: (ready: boolean) => void;
}

export interface RouterAddresses {
  /** host:port */
  coordinator: string;
  /** host:port under which clients reach the gRPC server that carries `service`. */
  own: string;
  /** URL, or empty. */
  metrics: string;
}

/** A router without a server of its own. The native addon must be configured already. */
export function createRouter(options: RouterOptions): Router {
  return new Router(options);
}

export class Router {
  /** To be added to a gRPC server. */
  readonly service: GrpcService;
  private readonly budget: ByteBudget;
  /** Of clients' messages that are in no chunk yet. */
  private readonly messages: ByteBudget;
  private readonly links: Links;
  private readonly cluster: KnownCluster;
  private readonly batches: Batches;
  private readonly metrics: RouterMetrics;
  private readonly windows: ChannelWindows;
  private readonly channels: ClientChannels;
  private readonly sessions = new Set<ClientSession>();
  private readonly watchers = new Watchers(() => this.clusterState());
  private readonly startedMs: number;
  private stopping: Promise<void> | null = null;

  constructor(private readonly options: RouterOptions) {
    const { config, name, token, log, registry, experts, runtime } = options;
    this.startedMs = runtime.clock.now();
    this.budget = new ByteBudget(config.budgetBytes, `router ${name}`);
    const reporter = new RouterReporter({
      runtime,
      bytesInFlight: () => this.budget.used,
      links: () => this.links,
      notReady: () => this.readiness().reason,
    });
    this.links = new Links({
      router: name,
      leaseMs: config.leaseMs,
      host: config.host,
      transport: config.transport,
      dial: dialWorker,
      ucx: nativeUcx,
      onUnknown: options.onUnknown,
      log,
      runtime,
      onChange: () => this.cluster.notify(),
    });
    this.cluster = new KnownCluster({
      token,
      dial: dialCoordinator,
      links: this.links,
      runtime,
      loadWeights: (description) => loadWeights(description, log),
      reporter,
      leaseMs: config.leaseMs,
      onUnknown: options.onUnknown,
      log,
      onChange: () => {
        this.watchers.notify();
        metrics.keepWorkers(new Set(this.cluster.view?.nodes.map(({ name }) => name)));
      },
      onReady: (ready) => {
        reporter.flush();
        options.onReady?.(ready);
      },
    });
    const metrics = createRouterMetrics(registry, experts, {
      batchesLive: () => this.batches.liveCount,
      bytesInFlight: () => this.budget.used,
      bytesMax: config.budgetBytes,
      links: () => this.links.open(),
      arena: () => runtime.rows.arenaStats(),
    });
    this.metrics = metrics;
    const { budget, links, cluster } = this;
    this.batches = new Batches({
      config,
      router: name,
      cluster,
      links,
      budget,
      reporter,
      metrics,
      trace: options.trace,
      log,
      runtime,
    });
    const { batchesMax, messageBytesMax } = config;
    this.windows = new ChannelWindows({ bytesMax: channelBytesMax(config), messageBytesMax, batchesMax });
    this.channels = new ClientChannels({
      acceptor: this.acceptor(),
      windows: this.windows,
      routingBytesMax: () => this.cluster.routingBytesMax,
      log,
    });
    this.messages = new ByteBudget(messageRoomBytes(config));
    this.service = {
      definition: services.Inference,
      implementation: this.handlers(),
      messageRoom: this.messages,
    };
  }

  /**
   * Joins the cluster. Resolves when the membership is over: null after `stop`, otherwise why this
   * router cannot be a member; batches are then refused with the same reason.
   */
  start(addresses: RouterAddresses): Promise<SwitchyardError | null> {
    const { config, name } = this.options;
    return this.cluster.run(addresses.coordinator, {
      role: 'ROUTER',
      name,
      address: addresses.own,
      host: hostname(),
      device: 'cpu',
      threads: config.threads,
      memoryBytes: config.budgetBytes,
      messageBytesMax: config.messageBytesMax,
      metricsUrl: addresses.metrics,
      pid: process.pid,
    });
  }

  readiness(): { ready: boolean; reason: string } {
    if (this.stopping !== null) return { ready: false, reason: 'the router is stopping' };
    return this.cluster.readiness();
  }

  /** As JSON, for operators. */
  state(): unknown {
    return {
      name: this.options.name,
      ...this.readiness(),
      joined: this.cluster.connected,
      epoch: this.cluster.view?.epoch ?? 0,
      batches: this.batches.liveCount,
      sessions: this.sessions.size,
      budget: stateOf(this.budget),
      messages: stateOf(this.messages),
      links: this.links.open().map(({ worker, transport, lanes, reason, stats }) => ({
        worker,
        transport,
        lanes,
        reason,
        ...stats,
      })),
      slabs: this.options.runtime.rows.arenaStats(),
    };
  }

  /** Where every expert is, as JSON. */
  expertState(): unknown {
    return { epoch: this.cluster.view?.epoch ?? 0, placement: this.expertPlacement() };
  }

  /** Refuses new batches, waits for those under way up to `drainMs`, ends the rest, and leaves. Idempotent. */
  stop(reason: string): Promise<void> {
    this.stopping ??= this.shutDown(reason);
    return this.stopping;
  }

  private async shutDown(reason: string): Promise<void> {
    const { config, runtime } = this.options;
    const { drainMs } = config;
    const drained = this.batches.drain(reason);
    this.watchers.end();
    // Told early, the coordinator sends nobody here any more.
    this.cluster.leaving(reason);
    const timer = runtime.clock.after(drainMs, () => {
      const message = `the router is stopping (${reason}) and waited ${drainMs} ms for this batch`;
      this.batches.abort(new SwitchyardError('DRAINING', message, { reason, drainMs }));
    });
    await drained;
    timer.cancel();
    for (const session of this.sessions) session.finish();
    await this.cluster.leave(reason);
    this.links.close();
    this.cluster.release();
  }

  /** This router as clients' offers of UCX are answered. */
  private acceptor(): UcxAcceptor {
    const { host, transport } = this.options.config;
    return { ucx: nativeUcx, host, transport, name: 'the router' };
  }

  private openSession(call: SessionStream): void {
    if (call.cancelled) return;
    const { windows, batches, options } = this;
    const session = new ClientSession(call, {
      router: options.name,
      stallMs: options.config.clientStallMs,
      acceptor: this.acceptor(),
      windows,
      batches,
      log: options.log,
      onEnd: () => this.sessions.delete(session),
    });
    this.sessions.add(session);
  }

  private expertPlacement(): PlacementInput | null {
    const { placement } = this.cluster;
    return placement && describePlacement(placement);
  }

  private handlers(): InferenceHandlers {
    return {
      Forward: (call) => {
        const { channels, options } = this;
        this.batches.accept(new OneShotCall(call, { channels, stallMs: options.config.clientStallMs }));
      },
      Session: (call) => this.openSession(call),
      DescribeModel: (_call, answer) => {
        const model = this.cluster.model;
        if (model === null) answer(toServiceError(this.unknownCluster()));
        else answer(null, model satisfies ModelDescriptionInput);
      },
      DescribeCluster: ({ request }, answer) => {
        const { view, model, figures } = this.cluster;
        if (view === null || model === null) {
          answer(toServiceError(this.unknownCluster()));
          return;
        }
        const known = {
          view: { ...view, ...this.readiness() },
          placement: request.placement ? this.expertPlacement() : null,
          figures,
          model,
          routed: request.placement ? this.metrics.routedRows() : [],
          router: this.options.name,
          uptimeMs: this.options.runtime.clock.now() - this.startedMs,
        };
        answer(null, describeCluster(known));
      },
      WatchCluster: (call) => this.watchers.accept(call),
    };
  }

  /** A router that stops says so itself: nobody else may be left to say it. */
  private clusterState(): ClusterStateInput {
    const { view, model } = this.cluster;
    const { name } = this.options;
    const own = { ...this.readiness(), router: name };
    if (view === null || model === null) return own;
    const { routers = [] } = clusterState(view, model);
    const state = { model, ...own };
    if (this.stopping === null) return { routers, ...state };
    const leaving = { state: 'DRAINING' } as const;
    return {
      routers: routers.map((router) => (router.name === name ? { ...router, ...leaving } : router)),
      ...state,
    };
  }

  private unknownCluster(): SwitchyardError {
    const { reason } = this.cluster.readiness();
    return new SwitchyardError('NOT_READY', `the router does not know its cluster yet: ${reason}`, {
      reason,
    });
  }
}

function stateOf({ capacity, used, waiting }: ByteBudget): { bytes: number; used: number; waiting: number } {
  return { bytes: capacity, used, waiting };
}
