import type { ExpertBackend } from '../../native/index.js';
import type { Access } from '../common/access.js';
import { ControlSession } from '../common/control-session.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { Assignment } from '../common/generated/switchyard/v1/Assignment.js';
import type { CoordinatorMessage } from '../common/generated/switchyard/v1/CoordinatorMessage.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { NodeHelloInput } from '../common/generated/switchyard/v1/NodeHello.js';
import type { NodeMessageInput } from '../common/generated/switchyard/v1/NodeMessage.js';
import type { RouterMessage } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessageInput } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { expertsIn, groupByLayer } from '../common/layer-experts.js';
import { Deferred } from '../common/lifecycle.js';
import type { OwnWork } from '../common/liveness.js';
import type { Logger } from '../common/log.js';
import type { Trace } from '../common/trace.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
import type { Dialer, Listener } from '../runtime/duplex.js';
import type { Runtime } from '../runtime/runtime.js';
import type { Tracer } from '../runtime/tracer.js';
import type { TokenBatchHandler } from '../transport/link.js';
import { createLinkSecret } from '../transport/link-key.js';
import { acceptLinks } from '../transport/serve.js';
import type { UcxSource } from '../transport/ucx/source.js';
import type { WeightBound, WorkerConfig } from './config.js';
import { Executor } from './executor.js';
import type { ExecutorMetrics } from './metrics.js';
import { WorkerReporter } from './report.js';
import { ExpertStore, type OpenedModel, type StoreOptions } from './store.js';

export interface WorkerCoreOptions extends Pick<StoreOptions, 'memoryLeft'> {
  config: WorkerSettings;
  /** The node token, for the coordinator alone. */
  token: string | null;
  /** Of the server that carries the links. */
  access: Access;
  backend: ExpertBackend;
  /** What the weights may take. */
  weights: WeightBound;
  metrics: ExecutorMetrics;
  trace: Trace | null;
  /** Null: nothing is traced. */
  tracer: Tracer | null;
  onUnknown: OnUnknown;
  log: Logger;
  runtime: Runtime;
  /** How the coordinator is reached. */
  dial: Dialer<CoordinatorMessage, NodeMessageInput>;
  /** Null: this process has none. */
  ucx: UcxSource | null;
  /** What the coordinator's description names, as it is here; the core closes it. */
  openModel: (description: ModelDescription) => Promise<OpenedModel>;
  /** Fingerprint of the model that the worker was started with; empty: it takes what the coordinator names. */
  ownFingerprint: () => string;
  /** Called when the worker may have become ready, or no longer be. */
  onChange: () => void;
  /** Called once, when it can be a worker no more. */
  onFailed: (error: SwitchyardError) => void;
}

export type WorkerSettings = Pick<
  WorkerConfig,
  | 'name'
  | 'coordinator'
  | 'host'
  | 'transport'
  | 'device'
  | 'maxRows'
  | 'leaseMs'
  | 'drainMs'
  | 'linkWindowBytes'
  | 'slabBytes'
  | 'messageBytesMax'
>;

/** What a worker tells the coordinator of its surroundings. */
export interface WorkerIdentity {
  /** host:port under which routers reach it. */
  address: string;
  /** Of the machine, as the topology names it. */
  host: string;
  /** URL, or empty. */
  metricsUrl: string;
  pid: number;
}

/** What a worker has once it knows its model. */
interface Loaded {
  model: OpenedModel['model'];
  executor: Executor;
  store: ExpertStore;
}

const reportMs = 100;

/** What a worker is without servers: its membership, its experts, and the links that routers open to it. */
export class WorkerCore {
  /** Takes the links of routers. */
  readonly accept: Listener<RouterMessage, WorkerMessageInput>;
  loaded: Loaded | null = null;
  private readonly linkSecret: Uint8Array;
  private readonly reporter: WorkerReporter;
  private readonly linksEnd = new AbortController();
  private session: ControlSession | null = null;
  private loading: Promise<void> | null = null;
  /** The last one. */
  private assignment: Assignment | null = null;
  /** Whether it came on the present stream. */
  private assignedHere = false;
  private ending = false;
  /** Resolves when the coordinator says that no router uses this worker any more. */
  private readonly released = new Deferred<void>();
  /** Token batches are refused: routers turn to other copies. */
  private refusing = false;

  constructor(private readonly options: WorkerCoreOptions) {
    const { config, backend, metrics, runtime } = options;
    this.linkSecret = createLinkSecret(runtime.random);
    this.reporter = new WorkerReporter(runtime, metrics.totals, () => backend.figures(), config.leaseMs);
    this.accept = acceptLinks({
      worker: config.name,
      secret: this.linkSecret,
      access: options.access,
      model: () => this.loaded?.model.spec ?? null,
      linkWindowBytes: config.linkWindowBytes,
      slabBytes: config.slabBytes,
      messageBytesMax: config.messageBytesMax,
      host: config.host,
      transport: config.transport,
      ucx: options.ucx,
      runtime,
      // A link opens only when the model, and so the executor, is there.
      handler: (batch, router) => this.submit(batch, router),
      onCancel: (batchId, router) => this.loaded!.executor.cancel(batchId, router),
      onUnknown: options.onUnknown,
      trace: options.trace,
      stopping: this.linksEnd.signal,
      log: options.log,
    });
  }

  /** What the device has to do. */
  get work(): OwnWork[] {
    return this.loaded === null ? [] : [this.loaded.executor];
  }

  get connected(): boolean {
    return this.session?.connected ?? false;
  }

  join(identity: WorkerIdentity): void {
    const { config, token, dial, runtime, onUnknown, log } = this.options;
    this.session = new ControlSession({
      coordinators: config.coordinator,
      token,
      dial,
      runtime,
      hello: this.hello(identity),
      report: () => {
        const version = this.loaded !== null && this.assignedHere ? this.assignment!.version : 0;
        const worker = this.reporter.report(this.loaded, version);
        return worker && { worker };
      },
      reportMs,
      leaseMs: config.leaseMs,
      onMessage: (message) => this.receive(message),
      onUnknown,
      log,
    });
    this.session.ended.then((error) => {
      if (error !== null) this.fail(error);
    });
  }

  readiness(): { ready: boolean; reason: string } {
    const reason = this.whyNotReady();
    return { ready: reason === '', reason };
  }

  /**
   * Says that it leaves, and goes when the coordinator says that no router uses it any more, or is away itself, and nothing is under way; after
   * `drainMs` in any case.
   */
  async drain(reason: string): Promise<void> {
    this.end();
    const { config, runtime, log } = this.options;
    const { drainMs } = config;
    const expired = new Deferred<void>();
    const timer = runtime.clock.after(drainMs, () => expired.resolve());
    this.session?.leaving(reason);
    if (this.connected)
      await Promise.race([this.released.promise, this.session!.streamEnded, expired.promise]);
    this.refusing = true;
    const executor = this.loaded?.executor ?? null;
    if (executor !== null) await Promise.race([executor.whenIdle(), expired.promise]);
    timer.cancel();
    if (executor !== null && !executor.idle)
      log.warn({ event: 'drain-cut', drainMs, bytesHeld: executor.bytesHeld });
    await this.leave(reason);
  }

  /** Leaves the cluster at once. */
  async leave(reason: string): Promise<void> {
    this.end();
    await this.session?.leave(reason);
  }

  /** Loads no more, and ends the links. */
  endLinks(): void {
    this.loaded?.store.close();
    this.linksEnd.abort();
  }

  /** Gives up what is left. To be called when the links have ended, before the backend is closed. */
  close(): void {
    this.endLinks();
    this.loaded?.executor.close();
    this.loaded?.model.close();
  }

  private submit(...[batch, router]: Parameters<TokenBatchHandler>): ReturnType<TokenBatchHandler> {
    const { name } = this.options.config;
    if (!this.refusing) return this.loaded!.executor.submit(batch, router);
    batch.rows.release();
    return Promise.reject(new SwitchyardError('DRAINING', `worker ${name} is stopping`, { worker: name }));
  }

  private end(): void {
    this.ending = true;
    this.options.onChange();
  }

  private hello(identity: WorkerIdentity): NodeHelloInput {
    const { config, backend, weights, ownFingerprint } = this.options;
    const fingerprint = () => this.loaded?.model.spec.fingerprint ?? ownFingerprint();
    const held = () => groupByLayer(this.loaded?.store.ready() ?? []);
    const term = () => this.assignment?.term ?? 0;
    return {
      role: 'WORKER',
      name: config.name,
      device: config.device,
      threads: backend.description.threads,
      memoryBytes: weights.bytes,
      memorySharedBytes: weights.sharedBytes,
      linkSecret: this.linkSecret,
      ...identity,
      // Read at every joining: a worker that holds experts joins only a coordinator of the same model.
      get modelFingerprint() {
        return fingerprint();
      },
      get held() {
        return held();
      },
      get term() {
        return term();
      },
    };
  }

  private receive(message: CoordinatorMessage): void {
    if (message.welcome) {
      // Whoever joined anew may know nothing of what this worker holds.
      this.reporter.forgetReported();
      this.assignedHere = false;
      this.loading ??= this.load(message.welcome.model!).catch((error) =>
        this.fail(asSwitchyardError(error)),
      );
    } else if (message.assignment) this.assign(message.assignment);
  }

  private assign(assignment: Assignment): void {
    const { log, onChange } = this.options;
    const { term, version, leave, aside } = assignment;
    const known = this.assignment ?? { term: 0, version: 0 };
    if (term < known.term || (term === known.term && version < known.version)) {
      log.warn({ event: 'assignment-refused', term, version, known: [known.term, known.version] });
      return;
    }
    const experts = [...expertsIn(assignment.experts)];
    log.info({ event: 'assigned', term, version, experts: experts.length });
    this.assignment = assignment;
    this.assignedHere = true;
    this.loaded?.store.assign(experts, aside);
    if (leave) this.released.resolve();
    onChange();
  }

  private async load(description: ModelDescription): Promise<void> {
    const { config, backend, weights, metrics, trace, tracer, runtime, memoryLeft, log, onChange } =
      this.options;
    const { model, finite } = await this.options.openModel(description);
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
      runtime,
      worker: config.name,
      hidden: spec.hidden,
      maxRows: config.maxRows,
      weighsInput: spec.weighsInput,
      metrics,
      trace,
      tracer,
      onDeviceLost: (error) => this.fail(error),
    });
    const store = new ExpertStore({
      worker: config.name,
      model,
      backend,
      executor,
      finite,
      weights,
      memoryLeft,
      onChange,
      log,
      clock: runtime.clock,
    });
    store.failed.then((error) => this.fail(error));
    this.loaded = { model, executor, store };
    log.info({ event: 'model-opened', model: spec.name, fingerprint: spec.fingerprint });
    const { assignment } = this;
    if (assignment !== null) store.assign([...expertsIn(assignment.experts)], assignment.aside);
    onChange();
  }

  private fail(error: SwitchyardError): void {
    if (this.ending) return;
    this.end();
    this.options.onFailed(error);
  }

  /** A worker without a share is ready: there is nothing that it waits for. */
  private whyNotReady(): string {
    if (this.ending) return 'the worker is draining';
    if (this.loaded === null) {
      return `not a member of the cluster of ${this.options.config.coordinator.join(', ')} yet`;
    }
    const { expertsLoaded, expertsTotal } = this.loaded.store.progress();
    return expertsLoaded === expertsTotal ? '' : `${expertsLoaded} of ${expertsTotal} experts are loaded`;
  }
}
