import { ControlSession } from '../common/control-session.js';
import { asSwitchyardError, type ErrorCode, SwitchyardError } from '../common/errors.js';
import type { BiasUpdate } from '../common/generated/switchyard/v1/BiasUpdate.js';
import type { ClusterView } from '../common/generated/switchyard/v1/ClusterView.js';
import type { CoordinatorMessage } from '../common/generated/switchyard/v1/CoordinatorMessage.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { NodeFigures } from '../common/generated/switchyard/v1/NodeFigures.js';
import type { NodeHelloInput } from '../common/generated/switchyard/v1/NodeHello.js';
import type { NodeMessageInput } from '../common/generated/switchyard/v1/NodeMessage.js';
import type { NodeWelcome } from '../common/generated/switchyard/v1/NodeWelcome.js';
import { heartbeatMsOf } from '../common/lease.js';
import { Deferred, type EndSignal, onAbort } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import { unpackFloat32 } from '../common/packed.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
import { modelLimits } from '../model/limits.js';
import type { Dialer } from '../runtime/duplex.js';
import type { Runtime } from '../runtime/runtime.js';
import type { Links } from './links.js';
import { indexPlacement, type PlacementIndex } from './placement.js';
import type { RouterReporter } from './report.js';
import type { RouterWeights } from './weights.js';

export interface KnownClusterOptions {
  /** The node token, for the coordinator alone. */
  token: string | null;
  dial: Dialer<CoordinatorMessage, NodeMessageInput>;
  links: Links;
  runtime: Runtime;
  /** Gates and norms of the model that the coordinator describes. */
  loadWeights: (description: ModelDescription) => Promise<RouterWeights>;
  reporter: RouterReporter;
  /** A coordinator whose heartbeat is overdue by so much is lost. */
  leaseMs: number;
  onUnknown: OnUnknown;
  log: Logger;
  /** Called when what the router knows of its cluster may have changed. */
  onChange: () => void;
  /** Called when the router becomes ready, or no longer is. */
  onReady: (ready: boolean) => void;
}

/**
 * What the router knows of its cluster: model, view, bias. It comes over the control stream; when that
 * breaks, the router goes on with what it knows and joins again.
 */
export class KnownCluster {
  weights: RouterWeights | null = null;
  placement: PlacementIndex | null = null;
  view: ClusterView | null = null;
  /** As the coordinator told them last, of all live nodes. */
  figures: readonly NodeFigures[] = [];
  model: ModelDescription | null = null;
  /** Feedback unless a batch says otherwise. */
  feedback = false;
  /** Layer to [experts], added for selection. */
  readonly bias = new Map<number, Float32Array>();
  private coordinator = '';
  private session: ControlSession | null = null;
  private failure: SwitchyardError | null = null;
  private changed = new Deferred<void>();
  private wasReady = false;

  constructor(private readonly options: KnownClusterOptions) {}

  /** Joins the coordinator at host:port. Resolves when the router's membership is over: null after `leave`, otherwise why it cannot be a member. */
  async run(coordinator: string, hello: NodeHelloInput): Promise<SwitchyardError | null> {
    const { token, dial, runtime, reporter, leaseMs, onUnknown, log } = this.options;
    this.coordinator = coordinator;
    const session = new ControlSession({
      coordinator,
      token,
      dial,
      runtime,
      hello,
      report: () => reporter.heartbeat(),
      // Gate counts do not wait for it.
      reportMs: heartbeatMsOf(leaseMs),
      leaseMs,
      onMessage: (message) => this.receive(message),
      onUnknown,
      log,
    });
    this.session = session;
    reporter.start((message) => session.send(message));
    const error = await session.ended;
    reporter.stop();
    if (error !== null) this.fail(error);
    return this.failure;
  }

  /** Tells the coordinator that this router takes no new batches. */
  leaving(reason: string): void {
    this.session?.leaving(reason);
  }

  async leave(reason: string): Promise<void> {
    await this.session?.leave(reason);
  }

  /** Gives back gates and norms. Call it when no batch is under way. */
  release(): void {
    this.weights?.release();
    this.weights = null;
  }

  /** Of one token's routing at all layers; what any model may have as long as this one is not known. */
  get routingBytesMax(): number {
    const spec = this.weights?.spec;
    const [layers, topK] = spec
      ? [spec.layers.length, spec.routing.topK]
      : [modelLimits.layers, modelLimits.topK];
    return layers * topK * 8;
  }

  get connected(): boolean {
    return this.session?.connected ?? false;
  }

  /** Whether every expert can be reached from this router, or in words why not. */
  readiness(): { ready: boolean; reason: string } {
    const reason = this.whyNotReady();
    return { ready: reason === '', reason };
  }

  /** To be called when anything that readiness depends on may have changed. */
  notify(): void {
    this.changed.resolve();
    this.changed = new Deferred();
    this.options.onChange();
    const { ready } = this.readiness();
    if (ready === this.wasReady) return;
    this.wasReady = ready;
    this.options.onReady(ready);
  }

  /** Resolves with the gates and norms as soon as they are loaded; rejects as `untilReady` does. */
  async untilLoaded(waitMs: number, signal: EndSignal): Promise<RouterWeights> {
    await this.until(() => this.weights !== null, waitMs, signal);
    return this.weights!;
  }

  /** Resolves as soon as the cluster is ready. Rejects with NOT_READY after `waitMs`, and with the signal's reason. */
  untilReady(waitMs: number, signal: EndSignal): Promise<void> {
    return this.until(() => this.readiness().ready, waitMs, signal);
  }

  private async until(met: () => boolean, waitMs: number, signal: EndSignal): Promise<void> {
    // The usual case costs nothing.
    if (met() && !signal.aborted) return;
    const expired = new Deferred<'expired'>();
    const timer = this.options.runtime.clock.after(waitMs, () => expired.resolve('expired'));
    const forget = onAbort(signal, () => expired.resolve('expired'));
    try {
      for (;;) {
        if (signal.aborted) throw this.abortedWait(signal);
        if (met()) return;
        if (this.failure !== null) throw notReady(this.failure.message);
        const outcome = await Promise.race([this.changed.promise, expired.promise]);
        if (outcome === 'expired' && !signal.aborted && !met()) {
          throw notReady(`${this.whyNotReady()} (waited ${waitMs} ms)`);
        }
      }
    } finally {
      timer.cancel();
      forget();
    }
  }

  /** The signal's reason; a deadline that passed also says what the batch was waiting for. */
  private abortedWait(signal: EndSignal): SwitchyardError {
    const { code, message, details } = asSwitchyardError(signal.reason);
    const reason = this.whyNotReady();
    if (code !== 'DEADLINE_EXCEEDED' || reason === '') return new SwitchyardError(code, message, details);
    return new SwitchyardError(code, `${message} while the cluster was not ready: ${reason}`, { reason });
  }

  private whyNotReady(): string {
    if (this.failure !== null) return this.failure.message;
    if (this.model === null) return `the coordinator ${this.coordinator} has not welcomed this router yet`;
    if (this.weights === null) return 'the gates of the model are not loaded yet';
    if (this.view === null) return 'no view of the cluster has come yet';
    // There is no placement before all expected workers have joined.
    if (!this.view.ready || this.placement === null) return this.view.reason;
    for (const worker of this.placement.workers) {
      const { link, reason } = this.options.links.find(worker);
      if (link === null) return `no link to worker ${worker}: ${reason}`;
    }
    return '';
  }

  private receive(message: CoordinatorMessage): void {
    if (message.welcome) this.welcome(message.welcome);
    else if (message.keys) this.options.links.setKeys(message.keys.keys);
    else if (message.view) this.receiveView(message.view);
    else if (message.bias) this.receiveBias(message.bias);
    else if (message.heartbeat) this.figures = message.heartbeat.figures;
  }

  private welcome({ model, feedback }: NodeWelcome): void {
    if (model === null) throw new SwitchyardError('INTERNAL', 'the coordinator welcomed without a model');
    // Whoever joined anew is not known by its links.
    this.options.reporter.forgetReported();
    const held = this.model;
    if (held !== null && held.fingerprint !== model.fingerprint) {
      throw new SwitchyardError(
        'MODEL_MISMATCH',
        `the coordinator now serves ${model.name} (${model.fingerprint}); this router holds ${held.name} (${held.fingerprint}): start it again`,
        { fingerprint: model.fingerprint, allowed: held.fingerprint },
      );
    }
    this.model = model;
    this.feedback = feedback;
    // The layers with a bias are told anew.
    this.bias.clear();
    if (held === null) void this.load(model);
  }

  private async load(model: ModelDescription): Promise<void> {
    try {
      const { loadWeights, runtime, log } = this.options;
      const startedMs = runtime.clock.now();
      this.weights = await loadWeights(model);
      const seconds = (runtime.clock.now() - startedMs) / 1000;
      log.info({
        event: 'model-loaded',
        model: model.name,
        fingerprint: model.fingerprint,
        seconds,
      });
    } catch (error) {
      this.fail(asSwitchyardError(error));
      await this.leave(this.failure!.message);
    }
    this.notify();
  }

  private receiveView(view: ClusterView): void {
    if (view.placement) this.placement = indexPlacement(view, view.placement);
    this.view = view;
    this.options.links.update(view, this.model!.fingerprint);
    this.notify();
  }

  private receiveBias({ layers }: BiasUpdate): void {
    for (const { layer, bias } of layers) this.bias.set(layer, unpackFloat32(bias));
  }

  private fail(error: SwitchyardError): void {
    if (this.failure !== null) return;
    this.failure = error;
    const code: ErrorCode = error.code;
    this.options.log.error({ event: 'membership-over', code, reason: error.message });
    this.notify();
  }
}

function notReady(reason: string): SwitchyardError {
  return new SwitchyardError('NOT_READY', `the cluster is not ready: ${reason}`, { reason });
}
