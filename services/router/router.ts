import { hostname } from 'node:os';
import { describeCluster } from '../common/describe-cluster.js';
import { SwitchyardError } from '../common/errors.js';
import type { ClusterStateInput } from '../common/generated/switchyard/v1/ClusterState.js';
import type { InferenceHandlers } from '../common/generated/switchyard/v1/Inference.js';
import type { ModelDescriptionInput } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { PlacementInput } from '../common/generated/switchyard/v1/Placement.js';
import type { Credential } from '../common/grpc-channel.js';
import { coordinatorDialer, workerDialer } from '../common/grpc-duplex.js';
import type { GrpcService } from '../common/grpc-server.js';
import type { OwnWork } from '../common/liveness.js';
import { services } from '../common/protocol.js';
import { toServiceError } from '../common/status.js';
import { clusterState, Watchers } from '../common/watchers.js';
import type { UcxAcceptor } from '../transport/handshake.js';
import { exportUcxMetrics } from '../transport/ucx/metrics.js';
import { nativeUcx } from '../transport/ucx/port.js';
import type { UcxSource } from '../transport/ucx/source.js';
import { ByteBudget } from './budget.js';
import { ChannelWindows } from './channel-windows.js';
import { ClientChannels } from './client-channels.js';
import { ClientSession, type SessionStream } from './client-session.js';
import { channelBytesMax, messageRoomBytes } from './config.js';
import { RouterCore, type RouterCoreOptions } from './core.js';
import { loadWeights } from './load-weights.js';
import { OneShotCall } from './one-shot-call.js';
import { OpenInference } from './open-inference/service.js';
import { describePlacement } from './placement.js';

/** What of grpc.health.v1 is ready when a router is: the server as a whole, and its services. */
export const routerServices = ['', 'switchyard.v1.Inference', 'inference.GRPCInferenceService'];

export interface RouterOptions
  extends Omit<
    RouterCoreOptions,
    'token' | 'machine' | 'dial' | 'ucx' | 'loadWeights' | 'onChange' | 'onReady'
  > {
  /** As a node. The token is for the coordinator alone. */
  credential: Credential;
  /** Called when every expert can be reached from here, and when no longer. */
  onReady?: (ready: boolean) => void;
  /** Whether the work of the process gets on. */
  live: () => boolean;
}

export interface RouterAddresses {
  /** host:port */
  coordinators: readonly string[];
  /** host:port under which clients reach the gRPC server that carries `services`. */
  own: string;
  /** URL, or empty. */
  metrics: string;
}

/** A router as clients see it, without a server of its own. The native addon must be configured already. */
export class Router {
  /** To be added to a gRPC server. */
  readonly services: GrpcService[];
  private readonly core: RouterCore;
  /** Towards clients. */
  private readonly ucx: UcxSource;
  /** Of clients' messages that are in no chunk yet. */
  private readonly messages: ByteBudget;
  private readonly windows: ChannelWindows;
  private readonly channels: ClientChannels;
  private readonly sessions = new Set<ClientSession>();
  private readonly openInference: OpenInference;
  private readonly watchers = new Watchers(() => this.clusterState());
  private readonly startedMs: number;
  private stopping: Promise<void> | null = null;

  constructor(private readonly options: RouterOptions) {
    const { config, name, credential, log, registry, runtime, live } = options;
    const { token, tls = null } = credential;
    const encrypted = tls?.encryptsRows ?? false;
    this.ucx = nativeUcx(encrypted, 'clients');
    this.startedMs = runtime.clock.now();
    this.core = new RouterCore({
      ...options,
      token,
      machine: hostname(),
      dial: { coordinator: coordinatorDialer(tls), worker: workerDialer(tls) },
      ucx: nativeUcx(encrypted),
      loadWeights: (description) => loadWeights(description, log),
      onChange: () => this.watchers.notify(),
      onReady: (ready) => options.onReady?.(ready),
    });
    exportUcxMetrics(registry);
    const { batchesMax, messageBytesMax } = config;
    this.windows = new ChannelWindows({ bytesMax: channelBytesMax(config), messageBytesMax, batchesMax });
    this.channels = new ClientChannels({
      acceptor: this.acceptor(),
      windows: this.windows,
      routingBytesMax: () => this.core.cluster.routingBytesMax,
      log,
    });
    this.messages = new ByteBudget(messageRoomBytes(config));
    const { core, messages } = this;
    this.openInference = new OpenInference({ router: name, config, core, messages, live });
    const own = { definition: services.Inference, implementation: this.handlers(), messageRoom: messages };
    this.services = [own, this.openInference.service];
  }

  /** As RouterCore.start. */
  start({ coordinators, own, metrics }: RouterAddresses): Promise<SwitchyardError | null> {
    return this.core.start(coordinators, {
      address: own,
      metricsUrl: metrics,
      pid: process.pid,
    });
  }

  /** What goes on by the router's own doing. */
  get work(): OwnWork {
    return this.core.work;
  }

  readiness(): { ready: boolean; reason: string } {
    return this.core.readiness();
  }

  /** Where the router at this host:port serves HTTP; empty: there is none, or it is not known. */
  httpOf(address: string): string {
    return this.core.cluster.view?.nodes.find((node) => node.address === address)?.metricsUrl ?? '';
  }

  /** As JSON, for operators. */
  state(): unknown {
    const { cluster, batches, budget, links } = this.core;
    return {
      name: this.options.name,
      ...this.readiness(),
      joined: cluster.connected,
      epoch: cluster.view?.epoch ?? 0,
      batches: batches.liveCount,
      sessions: this.sessions.size,
      budget: budget.state(),
      messages: this.messages.state(),
      openInference: this.openInference.state(),
      links: links.open().map(({ worker, transport, lanes, reason, stats }) => ({
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
    return { epoch: this.core.cluster.view?.epoch ?? 0, placement: this.expertPlacement() };
  }

  /** Refuses new batches, waits for those under way up to `drainMs`, ends the rest, and leaves. Idempotent. */
  stop(reason: string): Promise<void> {
    this.stopping ??= this.shutDown(reason);
    return this.stopping;
  }

  private async shutDown(reason: string): Promise<void> {
    const drained = this.core.drain(reason);
    this.watchers.end();
    await drained;
    for (const session of this.sessions) session.finish();
    this.openInference.finish();
    await this.core.leave(reason);
  }

  /** This router as clients' offers of UCX are answered. */
  private acceptor(): UcxAcceptor {
    const { host, transport } = this.options.config;
    return { ucx: this.ucx, host, transport, name: 'the router' };
  }

  private openSession(call: SessionStream): void {
    if (call.cancelled) return;
    const { windows, options } = this;
    const session = new ClientSession(call, {
      router: options.name,
      stallMs: options.config.clientStallMs,
      acceptor: this.acceptor(),
      windows,
      batches: this.core.batches,
      log: options.log,
      onEnd: () => this.sessions.delete(session),
    });
    this.sessions.add(session);
  }

  private expertPlacement(): PlacementInput | null {
    const { placement } = this.core.cluster;
    return placement && describePlacement(placement);
  }

  private handlers(): InferenceHandlers {
    return {
      Forward: (call) => {
        const { channels, options } = this;
        this.core.batches.accept(new OneShotCall(call, { channels, stallMs: options.config.clientStallMs }));
      },
      Session: (call) => this.openSession(call),
      DescribeModel: (_call, answer) => {
        const model = this.core.cluster.model;
        if (model === null) answer(toServiceError(this.unknownCluster()));
        else answer(null, model satisfies ModelDescriptionInput);
      },
      DescribeCluster: ({ request }, answer) => {
        const { view, model, figures } = this.core.cluster;
        if (view === null || model === null) {
          answer(toServiceError(this.unknownCluster()));
          return;
        }
        const known = {
          view: { ...view, ...this.readiness() },
          placement: request.placement ? this.expertPlacement() : null,
          figures,
          model,
          routed: request.placement ? this.core.metrics.routedRows() : [],
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
    const { view, model } = this.core.cluster;
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
    const { reason } = this.core.cluster.readiness();
    return new SwitchyardError('NOT_READY', `the router does not know its cluster yet: ${reason}`, {
      reason,
    });
  }
}
