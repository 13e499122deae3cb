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
import type { PlacementIndex } from './placement.js';
import { RouterPlacements } from './placements.js';
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
  readonly placements: RouterPlacements;
  view: ClusterView | null = null;
  /** As the coordinator told them last, of all live nodes. */
  figures: readonly NodeFigures[] = [];
  model: ModelDescription | null = null;
  /** Feedback unless a batch says otherwise. */
  feedback = false;
  /** Layer to [experts], added for selection. */
  readonly bias = new Map<number, Float32Array>();
  private coordinators: readonly string[] = [];
  private session: ControlSession | null = null;
  private failure: SwitchyardError | null = null;
  private changed = new Deferred<void>();
  private wasReady = false;
  /** What this router says of itself whenever it joins. */
  private hello: NodeHelloInput = {};

  constructor(private readonly options: KnownClusterOptions) {
    const { links, runtime, reporter, log } = options;
    this.placements = new RouterPlacements({
      links,
      clock: runtime.clock,
      connected: () => this.connected,
      onUse: () => reporter.flush(),
      onHeldLong: () => this.notify(),
      log,
    });
  }

  /** Joins the coordinator that leads, of those at these host:port. Resolves when the router's membership is over: null after `leave`, otherwise why it cannot be a member. */
  async run(coordinators: readonly string[], hello: NodeHelloInput): Promise<SwitchyardError | null> {
    const { token, dial, runtime, reporter, leaseMs, onUnknown, log } = this.options;
    this.coordinators = coordinators;
    this.hello = hello;
    const session = new ControlSession({
      coordinators,
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
    const [layers, topK] = spec ? [spec.layers.length, spec.topK] : [modelLimits.layers, modelLimits.topK];
    return layers * topK * 8;
  }

  /** What chunks begin with. */
  get placement(): PlacementIndex | null {
    return this.placements.current;
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
    this.placements.moveOn();
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
    await this.until(() => (this.weights === null ? this.whyNotReady() : ''), waitMs, signal);
    return this.weights!;
  }

  /** Resolves as soon as all experts of the layers can be reached. Rejects with NOT_READY after `waitMs`, and with the signal's reason. */
  untilReady(layers: readonly number[], waitMs: number, signal: EndSignal): Promise<void> {
    return this.until(() => this.whyNotReached(layers), waitMs, signal);
  }

  /** Resolves when something has changed of what is known, after `waitMs`, or when the signal aborts. */
  async untilChanged(waitMs: number, signal: EndSignal): Promise<void> {
    const expired = new Deferred<void>();
    const timer = this.options.runtime.clock.after(waitMs, () => expired.resolve());
    const forget = onAbort(signal, () => expired.resolve());
    await Promise.race([this.changed.promise, expired.promise]);
    timer.cancel();
    forget();
  }

  /** `lacking`: what is waited for, in words; empty: nothing any more. */
  private async until(lacking: () => string, waitMs: number, signal: EndSignal): Promise<void> {
    const { clock } = this.options.runtime;
    const endMs = clock.now() + waitMs;
    for (;;) {
      const reason = lacking();
      if (signal.aborted) throw abortedWait(signal, reason);
      if (reason === '') return;
      if (this.failure !== null) throw notReady(this.failure.message);
      const leftMs = endMs - clock.now();
      if (leftMs <= 0) throw notReady(`${reason} (waited ${waitMs} ms)`);
      await this.untilChanged(leftMs, signal);
    }
  }

  /** Of the cluster as a whole, in words; empty: it is ready. */
  private whyNotReady(): string {
    // A coordinator that was started anew, and has placed nothing yet, knows less than this router.
    if (this.view !== null && this.view.epoch > 0 && !this.view.ready) return this.view.reason;
    return this.whyNotReached(this.placement?.copies.keys() ?? []);
  }

  /** Why an expert of these layers cannot be reached from here, in words; empty: all can. */
  whyNotReached(layers: Iterable<number>): string {
    if (this.failure !== null) return this.failure.message;
    if (this.model === null)
      return `the coordinator ${this.coordinators.join(', ')} has not welcomed this router yet`;
    if (this.weights === null) return 'the gates of the model are not loaded yet';
    if (this.view === null) return 'no view of the cluster has come yet';
    if (this.placement === null) return this.view.reason;
    return this.placements.whyNotReached(layers);
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
    this.placements.joined();
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
    const { links, log } = this.options;
    const { placements } = this;
    const known = placements.latest;
    const { term, epoch } = view;
    if (known !== null && (term < known.term || (term === known.term && epoch < known.epoch))) {
      log.warn({ event: 'view-refused', term, epoch, known: [known.term, known.epoch] });
      return;
    }
    // One that has placed nothing leaves the first of its workers to be waited for.
    if (epoch > 0) this.hello.term = term;
    if (view.placement) placements.learn(view, view.placement);
    this.view = view;
    // A coordinator that was started anew does not know at once who is there.
    const kept = new Set(epoch === 0 ? known?.workers : []);
    links.update(view, this.model!.fingerprint, kept);
    this.notify();
    if (placements.latest !== known && placements.latest !== placements.current)
      log.info({ event: 'placement-awaited', term, epoch, reason: placements.whyAwaited() });
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

/** The signal's reason; a deadline that passed also says what the batch was waiting for. */
function abortedWait(signal: EndSignal, reason: string): SwitchyardError {
  const { code, message, details } = asSwitchyardError(signal.reason);
  if (code !== 'DEADLINE_EXCEEDED' || reason === '') return new SwitchyardError(code, message, details);
  return new SwitchyardError(code, `${message} while the cluster was not ready: ${reason}`, { reason });
}

function notReady(reason: string): SwitchyardError {
  return new SwitchyardError('NOT_READY', `the cluster is not ready: ${reason}`, { reason });
}
