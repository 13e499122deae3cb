import { resolve } from 'node:path';
import { type ExpertBackend, native } from '../../native/index.js';
import { Access, readTokens, type Tokens } from '../common/access.js';
import { advertised, advertisedUrl } from '../common/advertise.js';
import type { SwitchyardError } from '../common/errors.js';
import { ExpertMetrics } from '../common/expert-metrics.js';
import { coordinatorDialer } from '../common/grpc-duplex.js';
import { type GrpcServer, startGrpcServer } from '../common/grpc-server.js';
import { type HttpServer, startHttp } from '../common/http.js';
import { cutMs, Deferred, endMsMax, type Running } from '../common/lifecycle.js';
import { Liveness } from '../common/liveness.js';
import { createLogger, type Logger } from '../common/log.js';
import { ownMemoryLeft } from '../common/machine.js';
import { createRegistry, type Registry } from '../common/metrics.js';
import { boundSlabs } from '../common/slabs.js';
import { readTls, type Tls } from '../common/tls.js';
import { Trace } from '../common/trace.js';
import { unknownKinds } from '../common/unknown-kinds.js';
import { FiniteWeights } from '../model/finite.js';
import { type Model, openModel, parseModelSource } from '../model/load.js';
import { nativeRuntime } from '../runtime/native.js';
import type { Tracing } from '../runtime/open-telemetry.js';
import { startTracing } from '../runtime/tracing.js';
import { linkService } from '../transport/grpc/service.js';
import { exportUcxMetrics } from '../transport/ucx/metrics.js';
import { nativeUcx } from '../transport/ucx/port.js';
import { roomBesideSlabs, type WeightBound, type WorkerConfig, weightBound } from './config.js';
import { WorkerCore } from './core.js';
import { type ExecutorMetrics, executorMetrics, workerExpertMetrics, workerGauges } from './metrics.js';

/** Threads for copies of rows beside the compute threads. */
const rowThreads = 2;
const expertsName = 'switchyard.v1.Experts';

/** Runs a worker until `stop`, or until it cannot be one: `stopped` then rejects with the reason. */
export async function startWorker(config: WorkerConfig): Promise<Running> {
  const log = createLogger('worker', config.name, config.logLevel);
  const worker = new WorkerService(config, log, await startTracing('worker', config, log));
  try {
    return await worker.start();
  } catch (error) {
    await worker.close();
    throw error;
  }
}

class WorkerService {
  private readonly tokens: Required<Tokens>;
  private readonly tls: Tls | null;
  private readonly access: Access;
  private readonly registry: Registry;
  private readonly expertMetrics: ExpertMetrics;
  private readonly metrics: ExecutorMetrics;
  private readonly backend: ExpertBackend;
  /** How much the experts may take. */
  private readonly weights: WeightBound;
  private readonly core: WorkerCore;
  private readonly stopped = new Deferred<void>();
  private ownModel: Model | null = null;
  private grpc: GrpcServer | null = null;
  private http: HttpServer | null = null;
  private liveness: Liveness | null = null;
  private readonly trace: Trace | null;
  private stopping: Promise<void> | null = null;

  constructor(
    private readonly config: WorkerConfig,
    private readonly log: Logger,
    private readonly tracing: Tracing | null,
  ) {
    this.tokens = readTokens(config);
    this.tls = readTls(config, this.log);
    this.access = new Access(this.tokens, this.tls?.asksCallers);
    this.trace = Trace.open(config.trace, config.name, this.log);
    const weightRoom = roomBesideSlabs(config);
    boundSlabs({
      slabBytesMax: config.slabBytes,
      slabSetting: `slabBytes of worker ${config.name}`,
      threads: rowThreads,
    });
    this.backend = createBackend(config);
    this.weights = weightBound(config, weightRoom, this.backend.description.memoryBytes);
    this.registry = createRegistry('worker', config.name, nativeRuntime.usage);
    this.expertMetrics = new ExpertMetrics('worker', config.name);
    workerExpertMetrics(this.expertMetrics, () => this.core.loaded?.executor.experts() ?? []);
    this.metrics = executorMetrics(this.registry);
    this.core = this.createCore();
    exportUcxMetrics(this.registry);
    workerGauges(this.registry, {
      connected: () => this.core.connected,
      rowsQueued: () => this.core.loaded?.executor.rowsQueued ?? 0,
      bytesHeld: () => this.core.loaded?.executor.bytesHeld ?? 0,
      loaded: () => ({
        experts: this.core.loaded?.store.ready().length ?? 0,
        bytes: this.core.loaded?.store.bytes ?? 0,
      }),
      arena: () => native.arenaStats(),
      device: () => this.backend.figures(),
    });
  }

  async start(): Promise<Running> {
    const { config, log, access, tls } = this;
    const { host, insecure } = config;
    if (config.model !== null) {
      this.ownModel = await openModel(
        parseModelSource({ kind: 'checkpoint', directory: resolve(config.model) }),
        log,
      );
    }
    this.grpc = await startGrpcServer({
      host,
      port: config.port,
      access,
      insecure,
      tls,
      messageLimit: { bytesMax: config.messageBytesMax, node: `worker ${config.name}` },
      services: [linkService(this.core.accept)],
      log,
    });
    this.liveness = new Liveness({
      work: () => this.core.work,
      standstillMs: config.standstillMs,
      clock: nativeRuntime.clock,
      log,
      onChange: (live) => this.grpc?.setLive(live),
    });
    this.http = await startHttp({
      host,
      port: config.metricsPort,
      access,
      insecure,
      tls,
      log,
      registry: this.registry,
      experts: this.expertMetrics,
      health: () => this.liveness!.health(),
      ready: () => this.core.readiness(),
      state: () => this.state(),
      expertState: () => this.expertState(),
    });
    const { address } = this.grpc;
    const metricsUrl = this.http.url;
    log.info({ event: 'listening', address, metricsUrl, backend: this.backend.description });
    const { advertiseHost } = config;
    this.core.join({
      address: advertised(host, this.grpc.port, advertiseHost),
      host: config.topologyHost,
      metricsUrl: advertisedUrl(host, metricsUrl, advertiseHost),
      pid: process.pid,
    });
    return {
      address,
      metricsUrl,
      stopped: this.stopped.promise,
      endMsMax: endMsMax(config.drainMs),
      stop: (reason) => this.stop(reason),
    };
  }

  /** Closes what is open, without a drain. */
  async close(): Promise<void> {
    this.core.endLinks();
    await this.grpc?.close(cutMs);
    await this.http?.close();
    this.tls?.close();
    this.liveness?.close();
    this.core.close();
    this.backend.close();
    this.ownModel?.close();
    await this.trace?.close();
    await this.tracing?.close();
  }

  private createCore(): WorkerCore {
    const { config, log } = this;
    return new WorkerCore({
      config,
      token: this.tokens.node,
      access: this.access,
      backend: this.backend,
      weights: this.weights,
      // What is loaded onto a device passes through the process's memory in small parts.
      memoryLeft: this.backend.description.memoryBytes === null ? ownMemoryLeft : () => null,
      metrics: this.metrics,
      trace: this.trace,
      tracer: this.tracing,
      onUnknown: unknownKinds(this.registry, log),
      log,
      runtime: nativeRuntime,
      dial: coordinatorDialer(this.tls),
      ucx: nativeUcx(this.tls?.encryptsRows ?? false),
      openModel: async ({ source: described }) => {
        const source = parseModelSource(described);
        const model = this.ownModel ?? (await openModel(source, log));
        return { model, finite: new FiniteWeights(source, log) };
      },
      ownFingerprint: () => this.ownModel?.spec.fingerprint ?? '',
      onChange: () => this.showReadiness(),
      onFailed: (error) => this.fail(error),
    });
  }

  private fail(error: SwitchyardError): void {
    if (this.stopping !== null) return;
    const { code, message: reason, details } = error;
    this.log.error({ event: 'worker-failed', code, reason, details });
    this.log.info({ event: 'stopping', reason });
    this.stopping = this.core
      .leave(reason)
      .then(() => this.close())
      .then(() => {
        this.log.info({ event: 'stopped', reason });
        this.stopped.reject(error);
      });
  }

  private stop(reason: string): Promise<void> {
    this.stopping ??= this.drain(reason).then(() => this.stopped.resolve());
    return this.stopping;
  }

  private async drain(reason: string): Promise<void> {
    this.log.info({ event: 'stopping', reason });
    await this.core.drain(reason);
    await this.close();
    this.log.info({ event: 'stopped', reason });
  }

  /** What grpc.health.v1 answers is what /readyz does. */
  private showReadiness(): void {
    const { ready } = this.core.readiness();
    for (const name of ['', expertsName]) this.grpc?.setServing(name, ready);
  }

  private state(): unknown {
    const { config } = this;
    const { loaded } = this.core;
    return {
      name: config.name,
      coordinator: { addresses: config.coordinator, connected: this.core.connected },
      readiness: this.core.readiness(),
      backend: this.backend.description,
      device: this.backend.figures(),
      model: loaded?.model.spec.name ?? null,
      load: loaded?.store.progress() ?? null,
      rowsQueued: loaded?.executor.rowsQueued ?? 0,
      bytesHeld: loaded?.executor.bytesHeld ?? 0,
      slabs: native.arenaStats(),
    };
  }

  /** Every expert that is ready here. */
  private expertState(): unknown {
    const experts = [...(this.core.loaded?.executor.experts() ?? [])];
    return experts.map(({ layer, index, rows, rowsComputed, computeSeconds }) => ({
      layer,
      expert: index,
      rowsQueued: rows,
      rowsComputed,
      computeSeconds,
    }));
  }
}

/** After `configure`, before any slab: a device registers those that are allocated later. */
function createBackend({ device, threads }: WorkerConfig): ExpertBackend {
  if (device === 'cpu') return native.createCpuBackend({ threads });
  return native.createCudaBackend({ device: Number(device.slice('cuda:'.length)) });
}
