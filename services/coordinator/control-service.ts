import { controlLimits } from '../common/control-limits.js';
import type { EncodedMessage } from '../common/encoded-message.js';
import { invalidArgument, SwitchyardError } from '../common/errors.js';
import type { ClusterViewInput } from '../common/generated/switchyard/v1/ClusterView.js';
import type { CoordinatorMessageInput } from '../common/generated/switchyard/v1/CoordinatorMessage.js';
import type { ModelDescriptionInput } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { NodeMessage } from '../common/generated/switchyard/v1/NodeMessage.js';
import type { Logger } from '../common/log.js';
import { encodeControl } from '../common/protocol.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { Caller } from '../runtime/duplex.js';
import { Cluster, type ClusterOptions } from './cluster.js';
import type { Member } from './membership.js';
import {
  type ControlStream,
  type MessageKind,
  NodeStream,
  type NodeStreamOwner,
  type Told,
} from './node-stream.js';
import { Pace, type PaceOptions } from './pace.js';

export interface ControlServiceOptions extends ClusterOptions {
  /** How often every node hears from the coordinator. Well below the lease, after which nodes take it for lost. */
  heartbeatMs: number;
  /** Whether batches use the feedback loop's bias unless they say otherwise. */
  feedbackOn: boolean;
  description: ModelDescriptionInput;
  log: Logger;
  clock: Clock;
  /** Messages of one node; beyond them it is cut off. */
  pace: PaceOptions;
  onUnknown: OnUnknown;
  /** Whether this coordinator leads at this moment: otherwise it neither hears nor says anything. */
  leads: () => boolean;
  /** Called when the view may have changed. */
  onView: () => void;
  /** Called when the cluster becomes ready, or no longer is. */
  onReady: (ready: boolean) => void;
}

/** Changes that come within this time reach the routers in one view. */
const viewDelayMs = 20;

/** The Coordinator service: control streams on one side, the cluster's decisions on the other. */
export class ControlService implements NodeStreamOwner {
  readonly cluster: Cluster;
  private readonly streams = new Map<Member, NodeStream>();
  /** All streams, also those that have not said hello. */
  private readonly open = new Set<NodeStream>();
  private readonly timers: Timer[] = [];
  private viewTimer: Timer | null = null;
  /** What routers get, by what they know: encoded for the first of them, until something changes. */
  private readonly encoded = {
    view: new Map<string, EncodedMessage>(),
    bias: new Map<number, EncodedMessage>(),
    figures: new Map<null, EncodedMessage>(),
  };
  /** What routers were told last, and what `encoded` has. */
  private toldView: ClusterViewInput | null = null;
  private encodedView: ClusterViewInput | null = null;
  /** Why it is over. */
  private closed: SwitchyardError | null = null;
  private wasReady = false;
  private loggedEpoch = 0;

  constructor(private readonly options: ControlServiceOptions) {
    this.cluster = new Cluster(options, {
      onChange: () => this.scheduleView(),
      onAssignment: (member) => this.streams.get(member)?.say('assignment'),
      onBias: () => {
        this.encoded.bias.clear();
        this.sayTo('ROUTER', 'bias');
      },
      onReach: ({ hello, unreached }) => {
        const { log } = options;
        if (unreached === '') log.info({ event: 'worker-reached', worker: hello.name });
        else log.warn({ event: 'worker-unreached', worker: hello.name, reason: unreached });
      },
      onPlanFailed: ({ code, message }) => options.log.warn({ event: 'plan-failed', code, reason: message }),
    });
    const sweepMs = Math.max(10, options.leaseMs / 10);
    this.timers.push(
      this.clock.every(sweepMs, () => this.sweep(sweepMs)),
      this.clock.every(options.heartbeatMs, () => this.heartbeat()),
    );
    // The server keeps the process alive, not the clocks.
    for (const timer of this.timers) timer.unref();
  }

  /** Takes a node's control stream. */
  accept(stream: ControlStream, caller: Caller): void {
    const { leaseMs, pace } = this.options;
    const node = new NodeStream(stream, caller, this, this.clock, leaseMs, new Pace(pace, this.clock.now()));
    this.open.add(node);
    if (this.closed !== null) node.fail(this.closed);
    else if (this.strangers > controlLimits.strangersMax) node.fail(tooManyStrangers());
  }

  private get clock(): Clock {
    return this.options.clock;
  }

  get view(): ClusterViewInput {
    return this.cluster.view;
  }

  /** Streams that have not said hello. */
  get strangers(): number {
    return this.open.size - this.streams.size;
  }

  readiness(): { ready: boolean; reason: string } {
    if (this.closed !== null) return { ready: false, reason: this.closed.message };
    const { ready, reason } = this.view;
    return { ready: ready === true, reason: reason ?? '' };
  }

  get leads(): boolean {
    return this.options.leads();
  }

  /** Refuses new members, and sends the present ones away with the reason; they join again where a coordinator leads. Idempotent. */
  close(reason: SwitchyardError): void {
    this.closed ??= reason;
    for (const timer of this.timers) timer.cancel();
    this.viewTimer?.cancel();
    for (const stream of this.open) stream.fail(this.closed);
  }

  admit(stream: NodeStream, message: NodeMessage): Member {
    const hello = message.hello!;
    const member = this.cluster.join(hello, this.clock.now());
    this.streams.set(member, stream);
    this.options.log.info({
      event: 'node-joined',
      node: hello.name,
      nodeRole: hello.role,
      address: hello.address,
      host: hello.host,
      device: hello.device,
      nodePid: hello.pid,
    });
    if (hello.role === 'WORKER') {
      if (this.cluster.plans.started) stream.say('assignment');
      this.sayTo('ROUTER', 'keys');
    } else {
      stream.say('keys');
      stream.say('view');
      if (this.cluster.feedback.version > 0) stream.say('bias');
    }
    return member;
  }

  receive(member: Member, message: NodeMessage): void {
    this.cluster.heard(member, this.clock.now());
    switch (message.kind) {
      case 'worker':
        this.cluster.workerReport(member, message.worker!);
        break;
      case 'router':
        this.cluster.routerReport(member, message.router!, this.clock.now());
        break;
      case 'leaving':
        this.cluster.leave(member, message.leaving!.reason);
        this.options.log.info({
          event: 'node-leaving',
          node: member.hello.name,
          nodeRole: member.hello.role,
          reason: message.leaving!.reason,
        });
        break;
      case 'hello':
        throw invalidArgument('kind', 'hello', 'worker, router or leaving, after the hello');
      default:
        // A newer node may say more than this version understands.
        this.options.onUnknown('control');
    }
  }

  refused(stream: NodeStream, error: SwitchyardError): void {
    this.open.delete(stream);
    if (this.closed !== null) return;
    const { code, message, details } = error;
    this.options.log.warn({ event: 'node-refused', peer: stream.peer, code, reason: message, details });
  }

  gone(stream: NodeStream, member: Member, reason: string): void {
    this.open.delete(stream);
    this.streams.delete(member);
    if (this.cluster.end(member, reason, this.clock.now()) && this.closed === null) this.logGone(member);
  }

  compose(kind: MessageKind, member: Member, told: Told): CoordinatorMessageInput | EncodedMessage {
    const { cluster } = this;
    switch (kind) {
      case 'welcome':
        return { welcome: { model: this.options.description, feedback: this.options.feedbackOn } };
      case 'assignment':
        return { assignment: cluster.assignment(member) };
      case 'keys':
        return { keys: { keys: cluster.linkKeys(member) } };
      case 'view': {
        const since = member.told;
        const { term, epoch } = cluster;
        member.told = { term, epoch };
        if (this.view !== this.encodedView) this.encoded.view.clear();
        this.encodedView = this.view;
        const isNew = epoch > 0 && (since.term !== term || since.epoch !== epoch);
        return encodedOnce(this.encoded.view, `${since.term}/${since.epoch}`, () => {
          return { view: { ...this.view, placement: isNew ? cluster.placement(since) : null } };
        });
      }
      case 'bias': {
        const { biasVersion } = told;
        const { version } = cluster.feedback;
        told.biasVersion = version;
        return encodedOnce(this.encoded.bias, biasVersion, () => {
          return { bias: { version, layers: cluster.feedback.changedSince(biasVersion) } };
        });
      }
      case 'heartbeat':
        if (member.hello.role === 'WORKER') return { heartbeat: {} };
        return encodedOnce(this.encoded.figures, null, () => {
          return { heartbeat: { figures: cluster.figures() } };
        });
    }
  }

  private sweep(everyMs: number): void {
    for (const member of this.cluster.expire(this.clock.now(), everyMs)) {
      this.logGone(member);
      this.streams.get(member)?.fail(new SwitchyardError('DEADLINE_EXCEEDED', member.reason));
    }
  }

  /** Routers get the nodes' latest figures with it, so that they can describe the cluster. */
  private heartbeat(): void {
    this.encoded.figures.clear();
    this.sayTo('ROUTER', 'heartbeat');
    this.sayTo('WORKER', 'heartbeat');
  }

  private scheduleView(): void {
    if (this.closed !== null) return;
    this.viewTimer ??= this.clock.after(viewDelayMs, () => {
      this.viewTimer = null;
      this.cluster.settle(this.clock.now());
      this.tellView();
    });
  }

  /** Tells routers and clients what they do not know yet. */
  private tellView(): void {
    const { view } = this;
    if (view === this.toldView) return;
    this.toldView = view;
    this.sayTo('ROUTER', 'view');
    this.options.onView();
    this.logView();
  }

  private sayTo(role: 'WORKER' | 'ROUTER', kind: MessageKind): void {
    for (const [member, stream] of this.streams) if (member.hello.role === role) stream.say(kind);
  }

  private logView(): void {
    const { log, onReady } = this.options;
    const { epoch, ready, reason, nodes } = this.view;
    // While copies load, there is an epoch for every few of them.
    const isLoading = nodes?.some(({ loading }) => (loading ?? 0) > 0);
    if (this.cluster.epoch !== this.loggedEpoch && !isLoading) {
      this.loggedEpoch = this.cluster.epoch;
      log.info({
        event: 'placed',
        epoch,
        experts: this.cluster.experts.total,
        workers: this.cluster.plans.placement.names.length,
      });
    }
    if (ready === this.wasReady) return;
    this.wasReady = ready === true;
    if (this.wasReady) log.info({ event: 'ready', epoch });
    else log[this.cluster.lostHolder() ? 'warn' : 'info']({ event: 'not-ready', epoch, reason });
    onReady(this.wasReady);
  }

  private logGone(member: Member): void {
    const { log } = this.options;
    const line = { node: member.hello.name, nodeRole: member.hello.role, reason: member.reason };
    if (member.draining) log.info({ event: 'node-left', ...line });
    else log.warn({ event: 'node-dead', ...line });
  }
}

/** The message under this key, made and encoded if there is none. */
function encodedOnce<Key>(
  known: Map<Key, EncodedMessage>,
  key: Key,
  make: () => CoordinatorMessageInput,
): EncodedMessage {
  let message = known.get(key);
  if (message === undefined) {
    message = encodeControl(make());
    known.set(key, message);
  }
  return message;
}

function tooManyStrangers(): SwitchyardError {
  const { strangersMax } = controlLimits;
  const text = `${strangersMax} streams have not said hello yet; allowed: at most ${strangersMax}`;
  return new SwitchyardError('RESOURCE_EXHAUSTED', text, { allowed: strangersMax });
}
