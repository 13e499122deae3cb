import { Access, readTokens, type Tokens } from '../common/access.js';
import { advertised, advertisedUrl } from '../common/advertise.js';
import { controlLimits } from '../common/control-limits.js';
import { SwitchyardError } from '../common/errors.js';
import { ExpertMetrics } from '../common/expert-metrics.js';
import { serveDuplex } from '../common/grpc-duplex.js';
import { type GrpcServer, type GrpcService, startGrpcServer } from '../common/grpc-server.js';
import { type HttpServer, startHttp } from '../common/http.js';
import { cutMs, Deferred, endMsMax, type Running } from '../common/lifecycle.js';
import { Liveness } from '../common/liveness.js';
import { createLogger, type Logger } from '../common/log.js';
import { createRegistry, type Registry } from '../common/metrics.js';
import { services } from '../common/protocol.js';
import { boundSlabs } from '../common/slabs.js';
import { readTls, type Tls } from '../common/tls.js';
import { Trace } from '../common/trace.js';
import { type OnUnknown, unknownKinds } from '../common/unknown-kinds.js';
import { version } from '../common/version.js';
import { clusterState, Watchers } from '../common/watchers.js';
import { openModel } from '../model/load.js';
import type { ModelSpec } from '../model/spec.js';
import { clientWindowBytes, routerSlabs } from '../router/config.js';
import { Router, routerServices } from '../router/router.js';
import type { Timer } from '../runtime/clock.js';
import type { LeaderLease } from '../runtime/leader-lease.js';
import { nativeRuntime } from '../runtime/native.js';
import type { Tracing } from '../runtime/open-telemetry.js';
import { startTracing } from '../runtime/tracing.js';
import { type CoordinatorConfig, checkTimes, modelSourceOf, placementOf } from './config.js';
import { Console } from './console/console.js';
import { CoordinatorCore } from './core.js';
import { describeModel } from './describe.js';
import { describeOnly } from './inference.js';
import { coordinatorMetrics } from './metrics.js';
import { openLease } from './open-lease.js';
import { operatorService } from './operator.js';
import { PlansAside } from './plan-aside.js';
import { openTopology, type TopologySource } from './topology-source.js';

/** A bias of 1 outweighs any score, so nothing beyond it makes a difference. */
const biasLimit = 1;
/** Operators see who left, and who died, for so long. */
const leftKeptMs = 60_000;
const deadKeptMs = 15 * 60_000;
const coordinatorServices = ['switchyard.v1.Coordinator', 'switchyard.v1.Operator'];
/** Serves if this process leads, or could: it reaches the lease. */
const candidateName = 'candidate';
const lookMs = 1_000;

/** Runs a coordinator until `stop`. Rejects with CONFIG_INVALID or MODEL_INVALID if it cannot be started. */
export async function startCoordinator(config: CoordinatorConfig): Promise<Running> {
  checkTimes(config);
  const log = createLogger('coordinator', config.name, config.logLevel);
  const model = await readSpec(config, log);
  const lease = await openLease(config, nativeRuntime.clock, log);
  const topology = await openTopology(config, log);
  const tracing = await startTracing('coordinator', config, log);
  const coordinator = new CoordinatorService(config, model, lease, topology, log, tracing);
  try {
    return await coordinator.start();
  } catch (error) {
    await coordinator.close();
    throw error;
  }
}

async function readSpec(config: CoordinatorConfig, log: Logger): Promise<ModelSpec> {
  const model = await openModel(modelSourceOf(config), log);
  model.close();
  return model.spec;
}

class CoordinatorService {
  private readonly tokens: Required<Tokens>;
  private readonly tls: Tls | null;
  private readonly access: Access;
  private readonly registry: Registry;
  private readonly experts: ExpertMetrics;
  private readonly onUnknown: OnUnknown;
  private readonly plans = new PlansAside();
  private readonly core: CoordinatorCore;
  /** Clients that watch the cluster at a coordinator without a router; null: it does not lead. */
  private watchers: Watchers | null = null;
  private readonly router: Router | null;
  /** Of the embedded router. */
  private readonly trace: Trace | null;
  private readonly stopped = new Deferred<void>();
  private grpc: GrpcServer | null = null;
  private http: HttpServer | null = null;
  private console: Console | null = null;
  private liveness: Liveness | null = null;
  private looking: Timer | null = null;
  private stopping: Promise<void> | null = null;

  constructor(
    private readonly config: CoordinatorConfig,
    private readonly model: ModelSpec,
    private readonly lease: LeaderLease | null,
    private readonly topology: TopologySource,
    private readonly log: Logger,
    private readonly tracing: Tracing | null,
  ) {
    this.tokens = readTokens(config);
    this.tls = readTls(config, log);
    this.access = new Access(this.tokens, this.tls?.asksCallers);
    this.registry = createRegistry('coordinator', config.name, nativeRuntime.usage);
    this.experts = new ExpertMetrics('coordinator', config.name);
    this.onUnknown = unknownKinds(this.registry, this.log);
    this.trace = Trace.open(config.trace, config.name, this.log);
    this.core = this.createCore();
    this.onLeading();
    coordinatorMetrics(this.registry, this.experts, model, nativeRuntime.clock, () => this.core.leading);
    this.router = config.router ? this.createRouter() : null;
  }

  async start(): Promise<Running> {
    const { config, log, access, tls, core, registry, experts } = this;
    const { host, insecure } = config;
    this.grpc = await startGrpcServer({
      host,
      port: config.port,
      access,
      insecure,
      tls,
      messageLimit: { bytesMax: config.messageBytesMax, node: `router ${config.name}` },
      batchesMax: config.batchesMax,
      streamWindowBytes: clientWindowBytes(config),
      services: [
        {
          definition: services.Coordinator,
          implementation: { Join: serveDuplex((stream, caller) => core.accept(stream, caller)) },
        },
        {
          definition: services.Operator,
          implementation: operatorService(() => core.control.cluster, nativeRuntime.clock),
        },
        ...(this.router?.services ?? [this.describeOnly()]),
      ],
      healthNames: [candidateName],
      log,
    });
    this.liveness = new Liveness({
      work: () => [this.plans, ...(this.router === null ? [] : [this.router.work])],
      standstillMs: config.standstillMs,
      clock: nativeRuntime.clock,
      log,
      onChange: (live) => this.grpc?.setLive(live),
    });
    this.console = new Console({
      ...{ name: config.name, model: this.model, access, insecure, clock: nativeRuntime.clock },
      cluster: () => core.leading?.cluster ?? null,
      whyNot: () => core.readiness().reason,
      // A coordinator that leads and embeds a router is known by that.
      leaderUrl: () => this.router?.httpOf(core.leader) ?? '',
    });
    this.http = await startHttp({
      host,
      port: config.metricsPort,
      access,
      insecure,
      tls,
      log,
      registry,
      experts,
      health: () => this.liveness!.health(),
      ready: () => this.readiness(),
      state: () => this.state(),
      expertState: () => this.expertState(),
      console: this.console,
    });
    this.core.start(advertised(host, this.grpc.port, config.advertiseHost));
    this.onLeading();
    this.looking = nativeRuntime.clock.every(lookMs, () => this.showCandidate()).unref();
    const metricsUrl = this.http.url;
    log.info({ event: 'listening', address: this.grpc.address, metricsUrl, model: this.model.name });
    this.startRouter();
    return {
      address: this.grpc.address,
      metricsUrl,
      stopped: this.stopped.promise,
      endMsMax: endMsMax(this.router === null ? 0 : config.drainMs),
      stop: (reason) => this.stop(reason),
    };
  }

  /** Closes what is open, without a drain. */
  async close(): Promise<void> {
    this.looking?.cancel();
    await this.core.stop();
    await this.grpc?.close(cutMs);
    this.console?.close();
    await this.http?.close();
    this.tls?.close();
    this.liveness?.close();
    this.topology.close();
    await this.trace?.close();
    await this.tracing?.close();
  }

  private stop(reason: string): Promise<void> {
    this.stopping ??= this.drain(reason).then(() => this.stopped.resolve());
    return this.stopping;
  }

  private async drain(reason: string): Promise<void> {
    this.log.info({ event: 'stopping', reason });
    for (const name of [...this.clientServices, ...coordinatorServices, candidateName])
      this.grpc?.setServing(name, false);
    this.watchers?.end();
    // The workers stay members meanwhile: batches under way need them.
    await this.router?.stop(reason);
    await this.close();
    this.log.info({ event: 'stopped', reason });
  }

  private createCore(): CoordinatorCore {
    const { config, model, log } = this;
    return new CoordinatorCore({
      lease: this.lease,
      leaderLeaseMs: config.leaderLeaseMs,
      random: nativeRuntime.random,
      model,
      description: describeModel(model),
      placement: { ...placementOf(config), plan: (input) => this.plans.plan(input) },
      topology: () => this.topology.now,
      leaseMs: config.leaseMs,
      leftKeptMs,
      deadKeptMs,
      heartbeatMs: config.heartbeatMs,
      feedbackOn: config.feedback ?? model.family === 'synthetic',
      feedback: {
        rate: config.feedbackRate,
        limit: biasLimit,
        windowRowsPerExpert: config.feedbackWindow,
      },
      log,
      clock: nativeRuntime.clock,
      pace: { atOnce: controlLimits.messagesAtOnce, perSecond: controlLimits.messagesPerSecond },
      onUnknown: this.onUnknown,
      onView: () => this.watchers?.notify(),
      onReady: () => this.showReadiness(),
      onLeading: () => this.onLeading(),
    });
  }

  private createRouter(): Router {
    const { config, log, registry, experts } = this;
    boundSlabs({ ...routerSlabs(config, config.name), threads: config.threads });
    return new Router({
      config,
      name: config.name,
      credential: { token: this.tokens.node, tls: this.tls },
      log,
      registry,
      experts,
      trace: this.trace,
      tracer: this.tracing,
      runtime: nativeRuntime,
      onUnknown: this.onUnknown,
      onReady: () => this.showReadiness(),
      live: () => this.liveness?.health().healthy ?? true,
    });
  }

  /** The embedded router joins over loopback as any other does. */
  private startRouter(): void {
    const { host, advertiseHost } = this.config;
    const own = advertised(host, this.grpc!.port, advertiseHost);
    const metrics = advertisedUrl(host, this.http!.url, advertiseHost);
    this.router?.start({ coordinators: [this.grpc!.address], own, metrics }).then(async (error) => {
      if (error === null || this.stopping !== null) return;
      const reason = `the embedded router: ${error.message}`;
      this.log.info({ event: 'stopping', reason });
      await this.close();
      this.log.info({ event: 'stopped', reason });
      this.stopped.reject(new SwitchyardError(error.code, reason, error.details));
    });
  }

  private describeOnly(): GrpcService {
    const implementation = describeOnly({
      description: describeModel(this.model),
      cluster: () => this.core.control.cluster,
      watchers: () => this.watchers,
      clock: nativeRuntime.clock,
    });
    return { definition: services.Inference, implementation };
  }

  /** It began to lead, or does not any more. */
  private onLeading(): void {
    const { leading } = this.core;
    this.watchers?.end();
    this.watchers = leading && new Watchers(() => clusterState(leading.view, describeModel(this.model)));
    for (const name of coordinatorServices) this.grpc?.setServing(name, leading !== null);
    this.showCandidate();
    this.showReadiness();
  }

  /** Ready for batches: every expert is ready, and the embedded router reaches them all. */
  private readiness(): { ready: boolean; reason: string } {
    if (this.stopping !== null) return { ready: false, reason: 'the coordinator is draining' };
    // The router answers clients who ask; what it says is what they find.
    return this.router?.readiness() ?? this.core.readiness();
  }

  /** What of grpc.health.v1 is ready when batches can come. */
  private get clientServices(): readonly string[] {
    return this.router === null ? ['', 'switchyard.v1.Inference'] : routerServices;
  }

  private showCandidate(): void {
    this.grpc?.setServing(candidateName, this.stopping === null && this.core.inTouch);
  }

  private showReadiness(): void {
    const { ready } = this.readiness();
    for (const name of this.clientServices) this.grpc?.setServing(name, ready);
  }

  private state(): unknown {
    const { source: _, ...model } = this.model;
    const cluster = this.core.leading?.cluster;
    return {
      version,
      model,
      readiness: this.readiness(),
      leading: cluster !== undefined,
      view: cluster && { ...cluster.view, figures: cluster.figures() },
      topology: this.topology.now,
      feedbackSteps: cluster?.feedback.version,
      loads: cluster?.layerLoads(nativeRuntime.clock.now()),
      router: this.router?.state() ?? null,
    };
  }

  /** Where the copies of every expert are, their states and where they shall be; and the biases. */
  private expertState(): unknown {
    const cluster = this.core.leading?.cluster;
    if (cluster === undefined) return { leading: false };
    const biases = [...cluster.feedback.biases()].map(([layer, bias]) => ({ layer, bias: [...bias] }));
    return { leading: true, term: cluster.term, epoch: cluster.epoch, experts: cluster.copies(), biases };
  }
}
