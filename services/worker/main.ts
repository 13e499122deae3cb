import { resolve } from 'node:path';
import { type ExpertBackend, native } from '../../native/index.js';
import { Access, readTokens, type Tokens } from '../common/access.js';
import { advertised, advertisedUrl } from '../common/advertise.js';
import { ControlSession } from '../common/control-session.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import { ExpertMetrics } from '../common/expert-metrics.js';
import type { Assignment } from '../common/generated/switchyard/v1/Assignment.js';
import type { CoordinatorMessage } from '../common/generated/switchyard/v1/CoordinatorMessage.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { NodeHelloInput } from '../common/generated/switchyard/v1/NodeHello.js';
import { dialCoordinator } from '../common/grpc-duplex.js';
import { type GrpcServer, type GrpcService, startGrpcServer } from '../common/grpc-server.js';
import { type HttpServer, startHttp } from '../common/http.js';
import { expertsIn } from '../common/layer-experts.js';
import { cutMs, Deferred, endMsMax, type Running, sleepOn } from '../common/lifecycle.js';
import { createLogger, type Logger } from '../common/log.js';
import { createRegistry, type Registry } from '../common/metrics.js';
import { boundSlabs } from '../common/slabs.js';
import { Trace } from '../common/trace.js';
import { type OnUnknown, unknownKinds } from '../common/unknown-kinds.js';
import { FiniteWeights } from '../model/finite.js';
import { type Model, openModel, parseModelSource } from '../model/load.js';
import { nativeRuntime } from '../runtime/native.js';
import { linkService } from '../transport/grpc/service.js';
import { createLinkSecret } from '../transport/link-key.js';
import { nativeUcx } from '../transport/ucx/port.js';
import { roomBesideSlabs, type WeightBound, type WorkerConfig, weightBound } from './config.js';
import { Executor } from './executor.js';
import { type ExecutorMetrics, executorMetrics, workerExpertMetrics, workerGauges } from './metrics.js';
import { WorkerReporter } from './report.js';
import { ExpertStore } from './store.js';

const reportMs = 100;
/** Threads for copies of rows beside the compute threads. */
const rowThreads = 2;
/** Batches under way come back with their next layer within this. */
const quietMs = 250;
const expertsName = 'switchyard.v1.Experts';

/** Runs a worker until `stop`, or until it cannot be one: `stopped` then rejects with the reason. */
export async function startWorker(config: WorkerConfig): Promise<Running> {
  const worker = new WorkerService(config);
  try {
    return await worker.start();
  } catch (error) {
    await worker.close();
    throw error;
  }
}

/** What a worker has once it knows its model. */
interface Loaded {
  model: Model;
  executor: Executor;
  store: ExpertStore;
}

class WorkerService {
  private readonly log: Logger;
  private readonly tokens: Required<Tokens>;
  private readonly access: Access;
  private readonly linkSecret = createLinkSecret(nativeRuntime.random);
  private readonly registry: Registry;
  private readonly expertMetrics: ExpertMetrics;
  private readonly onUnknown: OnUnknown;
  private readonly metrics: ExecutorMetrics;
  private readonly backend: ExpertBackend;
  /** How much the experts may take. */
  private readonly weights: WeightBound;
  private readonly reporter: WorkerReporter;
  private readonly stopped = new Deferred<void>();
  private ownModel: Model | null = null;
  private loaded: Loaded | null = null;
  private loading: Promise<void> | null = null;
  /** What came before the model was open. */
  private assignment: Assignment | null = null;
  private session: ControlSession | null = null;
  private grpc: GrpcServer | null = null;
  private http: HttpServer | null = null;
  private readonly trace: Trace | null;
  private stopping: Promise<void> | null = null;
  private readonly linksEnd = new AbortController();

  constructor(private readonly config: WorkerConfig) {
    this.log = createLogger('worker', config.name, config.logLevel);
    this.tokens = readTokens(config);
    this.access = new Access(this.tokens);
    this.trace = Trace.open(config.trace, config.name, this.log);
    const weightRoom = roomBesideSlabs(config);
    boundSlabs({
      slabBytesMax: config.slabBytes,
      slabSetting: `slabBytes of worker ${config.name}`,
      threads: rowThreads,
    });
    this.backend = createBackend(config);
    this.weights = weightBound(config, weightRoom, this.backend.description.memoryBytes);
    this.registry = createRegistry('worker', config.name);
    this.expertMetrics = new ExpertMetrics('worker', config.name);
    workerExpertMetrics(this.expertMetrics, () => this.loaded?.executor.experts() ?? []);
    this.onUnknown = unknownKinds(this.registry, this.log);
    this.metrics = executorMetrics(this.registry);
    this.reporter = new WorkerReporter(
      nativeRuntime,
      this.metrics.totals,
      () => this.backend.figures(),
      config.leaseMs,
    );
    workerGauges(this.registry, {
      rowsQueued: () => this.loaded?.executor.rowsQueued ?? 0,
      bytesHeld: () => this.loaded?.executor.bytesHeld ?? 0,
      loaded: () => ({
        experts: this.loaded?.store.ready().length ?? 0,
        bytes: this.loaded?.store.bytes ?? 0,
      }),
      arena: () => native.arenaStats(),
      busySeconds: () => this.metrics.totals.seconds,
      device: () => this.backend.figures(),
      clock: nativeRuntime.clock,
    });
  }

  async start(): Promise<Running> {
    const { config, log, access } = this;
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
      messageLimit: { bytesMax: config.messageBytesMax, node: `worker ${config.name}` },
      services: [this.links()],
      log,
    });
    this.http = await startHttp({
      host,
      port: config.metricsPort,
      access,
      insecure,
      registry: this.registry,
      experts: this.expertMetrics,
      ready: () => this.readiness(),
      state: () => this.state(),
      expertState: () => this.expertState(),
    });
    const { address } = this.grpc;
    const metricsUrl = this.http.url;
    log.info({ event: 'listening', address, metricsUrl, backend: this.backend.description });
    this.join();
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
    this.loaded?.store.close();
    this.linksEnd.abort();
    await this.grpc?.close(cutMs);
    await this.http?.close();
    this.loaded?.executor.close();
    this.backend.close();
    this.loaded?.model.close();
    this.ownModel?.close();
    await this.trace?.close();
  }

  private join(): void {
    const { config } = this;
    this.session = new ControlSession({
      coordinator: config.coordinator,
      token: this.tokens.node,
      dial: dialCoordinator,
      runtime: nativeRuntime,
      hello: this.hello(),
      report: () => {
        const worker = this.reporter.report(this.loaded);
        return worker && { worker };
      },
      reportMs,
      leaseMs: config.leaseMs,
      onMessage: (message) => this.receive(message),
      onUnknown: this.onUnknown,
      log: this.log,
    });
    this.session.ended.then((error) => {
      if (error !== null) this.fail(error);
    });
  }

  private hello(): NodeHelloInput {
    const { config } = this;
    const { host, advertiseHost } = config;
    const own = () => (this.loaded?.model ?? this.ownModel)?.spec.fingerprint ?? '';
    return {
      role: 'WORKER',
      name: config.name,
      address: advertised(host, this.grpc!.port, advertiseHost),
      host: config.topologyHost,
      device: config.device,
      threads: this.backend.description.threads,
      memoryBytes: this.weights.bytes,
      metricsUrl: advertisedUrl(host, this.http!.url, advertiseHost),
      pid: process.pid,
      linkSecret: this.linkSecret,
      // Read at every joining: a worker that holds experts joins only a coordinator of the same model.
      get modelFingerprint() {
        return own();
      },
    };
  }

  private receive(message: CoordinatorMessage): void {
    if (message.welcome) {
      // Whoever joined anew may know nothing of what this worker holds.
      this.reporter.forgetReported();
      this.loading ??= this.load(message.welcome.model!).catch((error) =>
        this.fail(asSwitchyardError(error)),
      );
    } else if (message.assignment) {
      this.log.info({
        event: 'assigned',
        epoch: message.assignment.epoch,
        experts: [...expertsIn(message.assignment.experts)].length,
      });
      this.assignment = message.assignment;
      this.loaded?.store.assign([...expertsIn(message.assignment.experts)]);
      this.showReadiness();
    }
  }

  private async load(description: ModelDescription): Promise<void> {
    const { config, backend, log, metrics } = this;
    const source = parseModelSource(description.source);
    const model = this.ownModel ?? (await openModel(source, log));
    const { spec } = model;
    if (spec.fingerprint !== description.fingerprint) {
      throw new SwitchyardError(
        'MODEL_MISMATCH',
        `this worker reads model ${spec.fingerprint}; the cluster serves ${description.name}, ${description.fingerprint}`,
        { fingerprint: spec.fingerprint, allowed: description.fingerprint },
      );
    }
    const executor = new Executor({
      backend,
      runtime: nativeRuntime,
      worker: config.name,
      hidden: spec.hidden,
      maxRows: config.maxRows,
      weighsInput: spec.routing.weightOn === 'input',
      metrics,
      trace: this.trace,
      onDeviceLost: (error) => this.fail(error),
    });
    const store = new ExpertStore({
      worker: config.name,
      model,
      backend,
      executor,
      finite: new FiniteWeights(source, log),
      weights: this.weights,
      onChange: () => this.showReadiness(),
      log,
      clock: nativeRuntime.clock,
    });
    store.failed.then((error) => this.fail(error));
    this.loaded = { model, executor, store };
    log.info({ event: 'model-opened', model: spec.name, fingerprint: spec.fingerprint });
    if (this.assignment !== null) store.assign([...expertsIn(this.assignment.experts)]);
    this.showReadiness();
  }

  private links(): GrpcService {
    const { config, access, log } = this;
    return linkService({
      worker: config.name,
      secret: this.linkSecret,
      access,
      model: () => this.loaded?.model.spec ?? null,
      linkWindowBytes: config.linkWindowBytes,
      slabBytes: config.slabBytes,
      messageBytesMax: config.messageBytesMax,
      host: config.host,
      transport: config.transport,
      ucx: nativeUcx,
      runtime: nativeRuntime,
      // A link opens only when the model, and so the executor, is there.
      handler: (batch, router) => this.loaded!.executor.submit(batch, router),
      onCancel: (batchId, router) => this.loaded!.executor.cancel(batchId, router),
      onUnknown: this.onUnknown,
      trace: this.trace,
      stopping: this.linksEnd.signal,
      log,
    });
  }

  private fail(error: SwitchyardError): void {
    if (this.stopping !== null) return;
    const { code, message: reason, details } = error;
    this.log.error({ event: 'worker-failed', code, reason, details });
    this.log.info({ event: 'stopping', reason });
    this.stopping = this.session!.leave(reason)
      .then(() => this.close())
      .then(() => {
        this.log.info({ event: 'stopped', reason });
        this.stopped.reject(error);
      });
    this.showReadiness();
  }

  private stop(reason: string): Promise<void> {
    this.stopping ??= this.drain(reason).then(() => this.stopped.resolve());
    this.showReadiness();
    return this.stopping;
  }

  private async drain(reason: string): Promise<void> {
    this.log.info({ event: 'stopping', reason });
    this.session?.leaving(reason);
    const { drainMs } = this.config;
    const drained = this.loaded === null ? true : await untilQuiet(this.loaded.executor, drainMs);
    if (!drained)
      this.log.warn({ event: 'drain-cut', drainMs, bytesHeld: this.loaded?.executor.bytesHeld ?? 0 });
    await this.session?.leave(reason);
    await this.close();
    this.log.info({ event: 'stopped', reason });
  }

  private readiness(): { ready: boolean; reason: string } {
    const reason = this.whyNotReady();
    return { ready: reason === '', reason };
  }

  /** What grpc.health.v1 answers is what /readyz does. */
  private showReadiness(): void {
    const { ready } = this.readiness();
    for (const name of ['', expertsName]) this.grpc?.setServing(name, ready);
  }

  /** A worker without a share is ready: there is nothing that it waits for. */
  private whyNotReady(): string {
    if (this.stopping !== null) return 'the worker is draining';
    if (this.loaded === null) return `not a member of the cluster of ${this.config.coordinator} yet`;
    const { expertsLoaded, expertsTotal } = this.loaded.store.progress();
    return expertsLoaded === expertsTotal ? '' : `${expertsLoaded} of ${expertsTotal} experts are loaded`;
  }

  private state(): unknown {
    const { config, loaded } = this;
    return {
      name: config.name,
      coordinator: { address: config.coordinator, connected: this.session?.connected ?? false },
      readiness: this.readiness(),
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
    const experts = [...(this.loaded?.executor.experts() ?? [])];
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

/** True when nothing came for a while; false if that did not happen within `withinMs`. */
async function untilQuiet(executor: Executor, withinMs: number): Promise<boolean> {
  const { clock } = nativeRuntime;
  const end = clock.now() + withinMs;
  let quietSince = clock.now();
  while (clock.now() < end) {
    if (!executor.idle) quietSince = clock.now();
    else if (clock.now() - quietSince >= quietMs) return true;
    await sleepOn(clock, 20);
  }
  return executor.idle;
}
