import { checkNodeName } from '../common/certificate.js';
import type { EncodedMessage } from '../common/encoded-message.js';
import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import type { CoordinatorMessageInput } from '../common/generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeMessage } from '../common/generated/switchyard/v1/NodeMessage.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { Caller, Duplex } from '../runtime/duplex.js';
import type { Member } from './membership.js';
import type { Pace, PaceOptions } from './pace.js';

/** Messages that go to many nodes are encoded once. */
export type ControlStream = Duplex<NodeMessage, CoordinatorMessageInput | EncodedMessage>;

/** What the coordinator says to a node, in the order in which it is said. */
const kinds = ['welcome', 'assignment', 'keys', 'view', 'bias', 'heartbeat'] as const;
export type MessageKind = (typeof kinds)[number];

/** What a node knows by what its stream was told: only what is newer needs to be said. */
export interface Told {
  biasVersion: number;
}

/** The coordinator's side of what happens on a stream. */
export interface NodeStreamOwner {
  /** Whether the coordinator leads at this moment. */
  readonly leads: boolean;
  /** Throws to refuse the node. */
  admit(stream: NodeStream, message: NodeMessage): Member;
  /** Throws if the message makes no sense: the node is then cut off. */
  receive(member: Member, message: NodeMessage): void;
  refused(stream: NodeStream, error: SwitchyardError): void;
  gone(stream: NodeStream, member: Member, reason: string): void;
  /** The message as of now, which is sent at once; `told` is brought up to date with it. */
  compose(kind: MessageKind, member: Member, told: Told): CoordinatorMessageInput | EncodedMessage;
}

/**
 * One node's control stream. What is to be said is remembered by kind alone, and composed when the stream can take it:
 * the latest value wins, and a slow node holds no queue here.
 */
export class NodeStream {
  member: Member | null = null;
  private readonly due = new Set<MessageKind>();
  private readonly told: Told = { biasVersion: 0 };
  private readonly helloTimer: Timer;
  private writable = true;
  private closed = false;
  private flushing: Timer | null = null;

  constructor(
    private readonly stream: ControlStream,
    private readonly caller: Caller,
    private readonly owner: NodeStreamOwner,
    private readonly clock: Clock,
    helloMs: number,
    private readonly pace: Pace,
  ) {
    this.helloTimer = clock.after(helloMs, () =>
      this.fail(new SwitchyardError('DEADLINE_EXCEEDED', `no hello within ${helloMs} ms`)),
    );
    stream.listen({
      message: (message) => this.receive(message),
      drain: () => {
        this.writable = true;
        this.flush();
      },
      // A stream that breaks ends like one that is ended; only a goodbye tells them apart.
      end: () => this.end(),
      fail: () => this.end(),
    });
  }

  get peer(): string {
    return this.stream.peer;
  }

  /** Says this kind of message with its then latest content, as soon as the stream takes it. */
  say(kind: MessageKind): void {
    if (this.closed) return;
    this.due.add(kind);
    this.flushing ??= this.clock.soon(() => {
      this.flushing = null;
      this.flush();
    });
  }

  /** Ends the stream with an error for the node. */
  fail(error: SwitchyardError): void {
    if (this.closed) return;
    this.settle();
    if (this.member === null) this.owner.refused(this, error);
    else this.owner.gone(this, this.member, error.message);
    this.stream.destroy(error);
  }

  private receive(message: NodeMessage): void {
    if (this.closed || !this.owner.leads) return;
    try {
      if (!this.pace.take(this.clock.now())) throw tooManyMessages(this.pace.options);
      if (this.member !== null) {
        this.owner.receive(this.member, message);
        return;
      }
      if (message.kind !== 'hello')
        throw invalidArgument('kind', message.kind ?? '', 'hello, as the first message');
      this.helloTimer.cancel();
      checkNodeName(message.hello!.name, this.caller.certificate);
      this.member = this.owner.admit(this, message);
      this.say('welcome');
    } catch (error) {
      this.fail(asSwitchyardError(error));
    }
  }

  private flush(): void {
    for (const kind of kinds) {
      if (!this.writable || this.closed || this.member === null || !this.owner.leads) return;
      if (!this.due.delete(kind)) continue;
      this.writable = this.stream.write(this.owner.compose(kind, this.member, this.told));
    }
  }

  private end(): void {
    if (this.closed) return;
    this.settle();
    if (this.member !== null)
      this.owner.gone(this, this.member, 'its control stream ended without a goodbye');
    this.stream.destroy();
  }

  private settle(): void {
    this.closed = true;
    this.helloTimer.cancel();
    this.flushing?.cancel();
    this.due.clear();
  }
}

function tooManyMessages({ atOnce, perSecond }: PaceOptions): SwitchyardError {
  const text = `the node sends more messages than allowed: ${perSecond} a second, ${atOnce} at once`;
  return new SwitchyardError('RESOURCE_EXHAUSTED', text, { perSecond, atOnce });
}
