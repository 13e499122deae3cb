import type { Timer } from '../runtime/clock.js';
import type { Dialer, Duplex } from '../runtime/duplex.js';
import type { Runtime } from '../runtime/runtime.js';
import { isAddress } from './address.js';
import { backoffMs } from './backoff.js';
import { plainText } from './control-limits.js';
import { asSwitchyardError, type ErrorCode, SwitchyardError } from './errors.js';
import type { CoordinatorMessage } from './generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeHelloInput } from './generated/switchyard/v1/NodeHello.js';
import type { NodeMessageInput } from './generated/switchyard/v1/NodeMessage.js';
import { overdueMs, Standstill } from './lease.js';
import { Deferred, goodbyeMs } from './lifecycle.js';
import type { Logger } from './log.js';
import { isUntrusted, isWrongRole } from './status.js';
import type { OnUnknown } from './unknown-kinds.js';
import { version } from './version.js';

export interface ControlSessionOptions {
  /** host:port of each coordinator: one leads. */
  coordinators: readonly string[];
  token: string | null;
  dial: Dialer<CoordinatorMessage, NodeMessageInput>;
  runtime: Runtime;
  /** But for the version. Read at every joining; what a node knows of itself may grow. */
  hello: NodeHelloInput;
  /** What to say every `reportMs`; null: nothing this time. Called only when the stream can take it. */
  report: () => NodeMessageInput | null;
  reportMs: number;
  /** A coordinator whose heartbeat is overdue by so much is lost, and joined again. */
  leaseMs: number;
  onMessage: (message: CoordinatorMessage) => void;
  onUnknown?: OnUnknown;
  log: Logger;
}

/** Refusals that joining again would not change. */
const finalCodes: ReadonlySet<ErrorCode> = new Set([
  'MODEL_MISMATCH',
  'MODEL_INVALID',
  'INVALID_ARGUMENT',
  'UNAUTHENTICATED',
  'PERMISSION_DENIED',
]);

/** A coordinator that starts later, or anew, is back within this. */
const absentMsUsual = 30_000;
const backoffMsMin = 100;
const backoffMsMax = 2_000;
const messageBytesMax = 64 * 1024 * 1024;

type ControlStream = Duplex<CoordinatorMessage, NodeMessageInput>;

/**
 * A node's control stream to the coordinator that leads: says hello, reports, and joins again with backoff and jitter
 * when the stream breaks or falls silent. It asks one coordinator after the other, and each that is named as the leader. Never queues: while the stream cannot take a report, none is made.
 */
export class ControlSession {
  private readonly timer: Timer;
  private readonly standstill: Standstill;
  private readonly done = new Deferred<SwitchyardError | null>();
  private stream: ControlStream | null = null;
  /** Resolves when the present stream is gone. */
  private gone = new Deferred<void>();
  private retry: Timer | null = null;
  /** The coordinator asked now or last. */
  private address: string;
  /** Counts the addresses of the list that were asked. */
  private turn = 0;
  /** The present address was named by a coordinator of the list. */
  private named = false;
  /** Addresses of the list that led last to a coordinator which this node does not trust, or to a server of another role. */
  private readonly useless = new Set<string>();
  /** Rounds of the list in vain. */
  private rounds = 0;
  private joined = false;
  private joinedBefore = false;
  private writable = false;
  private heardAt = 0;
  private lostAt = 0;
  /** How loudly the present loss was told. */
  private lossTold: 'not' | 'info' | 'warn' = 'not';
  /** From the goodbye on: a stream that is lost is not joined again. */
  private ending = false;

  constructor(private readonly options: ControlSessionOptions) {
    this.lostAt = this.now();
    this.standstill = new Standstill(this.lostAt);
    this.address = options.coordinators[0]!;
    this.open();
    this.timer = options.runtime.clock.every(options.reportMs, () => this.tick());
  }

  /** Resolves when the session is over: null after `leave`, otherwise why the node cannot be a member. */
  get ended(): Promise<SwitchyardError | null> {
    return this.done.promise;
  }

  /** host:port of the coordinator that is joined, or asked. */
  get coordinator(): string {
    return this.address;
  }

  /** Whether the coordinator has welcomed this node and the stream stands. */
  get connected(): boolean {
    return this.joined;
  }

  /** Resolves when the present stream is gone. */
  get streamEnded(): Promise<void> {
    return this.gone.promise;
  }

  /** Sends at once; false if there is no stream or it cannot take more now: then say it again later. */
  send(message: NodeMessageInput): boolean {
    if (!this.joined || !this.writable || this.stream === null) return false;
    this.writable = this.stream.write(message);
    return true;
  }

  /** Tells the coordinator that this node takes no new work; the stream stays open until `leave`. */
  leaving(reason: string): void {
    if (this.ending) return;
    this.ending = true;
    if (this.joined) this.stream?.write({ leaving: { reason: plainText(reason) } });
  }

  /** Says goodbye and what there still is to report, ends the stream, waits a moment until the coordinator has ended it too. */
  async leave(reason: string): Promise<void> {
    this.leaving(reason);
    const { stream, gone } = this;
    if (stream !== null && this.joined) {
      this.report();
      const timer = this.options.runtime.clock.after(goodbyeMs, () => gone.resolve()).unref();
      stream.end();
      await gone.promise;
      timer.cancel();
    }
    this.finish(null);
  }

  /** The address of the list that is asked, or that named the one which is. */
  private get listed(): string {
    const { coordinators } = this.options;
    return coordinators[this.turn % coordinators.length]!;
  }

  private now(): number {
    return this.options.runtime.clock.now();
  }

  private open(): void {
    this.retry = null;
    const { dial, token, hello } = this.options;
    const authorization = token === null ? null : `Bearer ${token}`;
    const stream = dial(this.address, { authorization, messageBytesMax });
    this.stream = stream;
    this.gone = new Deferred();
    this.heardAt = this.now();
    stream.listen({
      message: (message) => this.receive(message),
      drain: () => {
        this.writable = true;
      },
      end: () => this.lost(new SwitchyardError('LINK_LOST', 'the coordinator ended the stream')),
      fail: (error) => this.lost(error),
    });
    this.writable = stream.write({ hello: { ...hello, version } });
  }

  private receive(message: CoordinatorMessage): void {
    this.heardAt = this.now();
    if (!this.joined && message.kind === 'welcome') {
      this.joined = true;
      this.joinedBefore = true;
      this.rounds = 0;
      this.useless.clear();
      this.lossTold = 'not';
      this.options.log.info({ event: 'coordinator-joined', coordinator: this.address });
    }
    try {
      if (message.kind === undefined) this.options.onUnknown?.('control');
      else this.options.onMessage(message);
    } catch (error) {
      this.finish(asSwitchyardError(error));
    }
  }

  private tick(): void {
    const { leaseMs, reportMs } = this.options;
    const nowMs = this.now();
    this.heardAt = Math.min(nowMs, this.heardAt + this.standstill.look(nowMs, reportMs));
    if (this.stream === null) return;
    const lateMs = overdueMs(nowMs - this.heardAt, leaseMs);
    if (lateMs > leaseMs) {
      const silence = `the coordinator at ${this.address} was silent for ${Math.round(lateMs)} ms beyond its heartbeat`;
      this.lost(new SwitchyardError('LINK_LOST', `${silence}; allowed: ${leaseMs} ms`));
      return;
    }
    this.report();
  }

  private report(): void {
    if (!this.joined || !this.writable) return;
    const message = this.options.report();
    if (message !== null) this.send(message);
  }

  private lost(error: SwitchyardError): void {
    this.stream?.destroy();
    this.stream = null;
    this.gone.resolve();
    if (this.joined) this.lostAt = this.now();
    this.joined = false;
    this.writable = false;
    if (this.ending) return;
    if (this.isFinal(error)) {
      this.finish(error);
      return;
    }
    this.tellLoss(error);
    this.retry = this.options.runtime.clock.after(this.turnTo(error), () => this.open());
  }

  /** Chooses whom to ask next. Returns the milliseconds until then. */
  private turnTo(error: SwitchyardError): number {
    const { code, details } = error;
    const { coordinators, runtime } = this.options;
    const leader = code === 'NOT_LEADING' ? String(details.leader ?? '') : '';
    // Who was named and does not lead either names nobody: two that name each other would be asked without end.
    this.named = !this.named && isAddress(leader);
    if (this.named) {
      this.address = leader;
      return 0;
    }
    if (!isUseless(error)) this.useless.delete(this.listed);
    this.turn += 1;
    this.address = this.listed;
    if (this.turn % coordinators.length > 0) return 0;
    this.rounds += 1;
    return backoffMs(runtime.random, this.rounds - 1, backoffMsMin, backoffMsMax);
  }

  /**
   * That a coordinator which stops sends its nodes away is no fault, nor that nodes start before it does, as long as it comes.
   */
  private tellLoss(error: SwitchyardError): void {
    const absentMs = this.now() - this.lostAt;
    const isSentAway = error.code === 'DRAINING' || error.code === 'NOT_LEADING';
    const isExpected = !this.joinedBefore && !isUseless(error);
    const orderly = isSentAway || isExpected || this.lossTold === 'info';
    const level = orderly && absentMs < absentMsUsual ? 'info' : 'warn';
    if (this.lossTold === level || this.lossTold === 'warn') return;
    this.lossTold = level;
    this.options.log[level]({
      event: this.joinedBefore ? 'coordinator-lost' : 'coordinator-unreachable',
      coordinator: this.address,
      code: error.code,
      reason: error.message,
    });
  }

  /**
   * A member waits for a coordinator whose certificate is not trusted: it may be about to change, or this end's trust. So it
   * does where a server of another role answers. Others end once that is so wherever their list leads.
   * A name stays taken until the lease of a node's own broken stream has run out, so a member tries again for that long.
   */
  private isFinal(error: SwitchyardError): boolean {
    if (isUseless(error)) {
      this.useless.add(this.listed);
      return !this.joinedBefore && this.options.coordinators.every((one) => this.useless.has(one));
    }
    if (error.code !== 'NAME_TAKEN') return finalCodes.has(error.code);
    return !this.joinedBefore || this.now() - this.lostAt > 2 * this.options.leaseMs;
  }

  private finish(error: SwitchyardError | null): void {
    this.ending = true;
    this.joined = false;
    this.timer.cancel();
    this.retry?.cancel();
    this.stream?.destroy();
    this.stream = null;
    this.gone.resolve();
    this.done.resolve(error);
  }
}

/** Whether the server that was asked is none that this node can join. */
function isUseless(error: SwitchyardError): boolean {
  return isUntrusted(error) || isWrongRole(error);
}
