import type { ClientDuplexStream } from '@grpc/grpc-js';
import { systemRandom } from '../runtime/system.js';
import { backoffMs } from './backoff.js';
import { plainText } from './control-limits.js';
import { asSwitchyardError, type ErrorCode, SwitchyardError } from './errors.js';
import type { CoordinatorClient } from './generated/switchyard/v1/Coordinator.js';
import type { CoordinatorMessage } from './generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeHelloInput } from './generated/switchyard/v1/NodeHello.js';
import type { NodeMessageInput } from './generated/switchyard/v1/NodeMessage.js';
import { connect } from './grpc-channel.js';
import { Deferred, goodbyeMs } from './lifecycle.js';
import type { Logger } from './log.js';
import { clients } from './protocol.js';
import { fromServiceError } from './status.js';
import type { OnUnknown } from './unknown-kinds.js';

export interface ControlSessionOptions {
  /** host:port of the coordinator. */
  coordinator: string;
  token: string | null;
  /** Read at every joining; what a node knows of itself may grow. */
  hello: NodeHelloInput;
  /** What to say every `reportMs`; null: nothing this time. Called only when the stream can take it. */
  report: () => NodeMessageInput | null;
  reportMs: number;
  /** A coordinator silent for so long is lost, and joined again. */
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

/**
 * A node's control stream to the coordinator: says hello, reports, and joins again with backoff and jitter
 * when the stream breaks or falls silent. Never queues: while the stream cannot take a report, none is made.
 */
export class ControlSession {
  private readonly client: CoordinatorClient;
  private readonly timer: NodeJS.Timeout;
  private readonly done = new Deferred<SwitchyardError | null>();
  private call: ClientDuplexStream<NodeMessageInput, CoordinatorMessage> | null = null;
  private retry: NodeJS.Timeout | null = null;
  private attempts = 0;
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
    this.client = connect(clients.Coordinator, options.coordinator, {
      token: options.token,
      messageBytesMax,
    });
    this.lostAt = performance.now();
    this.open();
    this.timer = setInterval(() => this.tick(), options.reportMs);
  }

  /** Resolves when the session is over: null after `leave`, otherwise why the node cannot be a member. */
  get ended(): Promise<SwitchyardError | null> {
    return this.done.promise;
  }

  /** Whether the coordinator has welcomed this node and the stream stands. */
  get connected(): boolean {
    return this.joined;
  }

  /** Sends at once; false if there is no stream or it cannot take more now: then say it again later. */
  send(message: NodeMessageInput): boolean {
    if (!this.joined || !this.writable || this.call === null) return false;
    this.writable = this.call.write(message);
    return true;
  }

  /** Tells the coordinator that this node takes no new work; the stream stays open until `leave`. */
  leaving(reason: string): void {
    if (this.ending) return;
    this.ending = true;
    if (this.joined) this.call?.write({ leaving: { reason: plainText(reason) } });
  }

  /** Says goodbye, ends the stream, waits a moment until the coordinator has ended it too. */
  async leave(reason: string): Promise<void> {
    this.leaving(reason);
    const call = this.call;
    if (call !== null && this.joined) {
      const gone = new Promise<void>((resolve) => {
        call.once('status', () => resolve());
        setTimeout(resolve, goodbyeMs).unref();
      });
      call.end();
      await gone;
    }
    this.finish(null);
  }

  private open(): void {
    this.retry = null;
    const call = this.client.Join();
    this.call = call;
    this.heardAt = performance.now();
    call.on('data', (message: CoordinatorMessage) => this.receive(call, message));
    call.on('drain', () => {
      if (this.call === call) this.writable = true;
    });
    // A broken stream emits an error and a status; the first one to arrive is taken.
    call.on('error', (error) => this.lost(call, fromServiceError(error)));
    call.on('end', () =>
      this.lost(call, new SwitchyardError('LINK_LOST', 'the coordinator ended the stream')),
    );
    this.writable = call.write({ hello: this.options.hello });
  }

  private receive(
    call: ClientDuplexStream<NodeMessageInput, CoordinatorMessage>,
    message: CoordinatorMessage,
  ) {
    if (this.call !== call) return;
    this.heardAt = performance.now();
    if (!this.joined && message.kind === 'welcome') {
      this.joined = true;
      this.joinedBefore = true;
      this.attempts = 0;
      this.lossTold = 'not';
      this.options.log.info({ event: 'coordinator-joined', coordinator: this.options.coordinator });
    }
    try {
      if (message.kind === undefined) this.options.onUnknown?.('control');
      else this.options.onMessage(message);
    } catch (error) {
      this.finish(asSwitchyardError(error));
    }
  }

  private tick(): void {
    if (this.call === null) return;
    const silentMs = performance.now() - this.heardAt;
    if (silentMs > this.options.leaseMs) {
      const error = new SwitchyardError(
        'LINK_LOST',
        `the coordinator at ${this.options.coordinator} was silent for ${Math.round(silentMs)} ms; allowed: ${this.options.leaseMs} ms`,
      );
      this.lost(this.call, error);
      return;
    }
    if (!this.joined || !this.writable) return;
    const message = this.options.report();
    if (message !== null) this.send(message);
  }

  private lost(call: ClientDuplexStream<NodeMessageInput, CoordinatorMessage>, error: SwitchyardError): void {
    if (this.call !== call) return;
    call.cancel();
    this.call = null;
    if (this.joined) this.lostAt = performance.now();
    this.joined = false;
    this.writable = false;
    if (this.ending) return;
    if (this.isFinal(error)) {
      this.finish(error);
      return;
    }
    this.tellLoss(error);
    this.retry = setTimeout(
      () => this.open(),
      backoffMs(systemRandom, this.attempts, backoffMsMin, backoffMsMax),
    );
    this.attempts += 1;
  }

  /**
   * That a coordinator which stops sends its nodes away is no fault, nor that nodes start before it does, as long as it comes.
   */
  private tellLoss(error: SwitchyardError): void {
    const absentMs = performance.now() - this.lostAt;
    const orderly = error.code === 'DRAINING' || !this.joinedBefore || this.lossTold === 'info';
    const level = orderly && absentMs < absentMsUsual ? 'info' : 'warn';
    if (this.lossTold === level || this.lossTold === 'warn') return;
    this.lossTold = level;
    this.options.log[level]({
      event: this.joinedBefore ? 'coordinator-lost' : 'coordinator-unreachable',
      coordinator: this.options.coordinator,
      code: error.code,
      reason: error.message,
    });
  }

  /** A name stays taken until the lease of a node's own broken stream has run out, so a member tries again for that long. */
  private isFinal(error: SwitchyardError): boolean {
    if (error.code !== 'NAME_TAKEN') return finalCodes.has(error.code);
    return !this.joinedBefore || performance.now() - this.lostAt > 2 * this.options.leaseMs;
  }

  private finish(error: SwitchyardError | null): void {
    this.ending = true;
    this.joined = false;
    clearInterval(this.timer);
    if (this.retry !== null) clearTimeout(this.retry);
    this.call?.cancel();
    this.call = null;
    this.client.close();
    this.done.resolve(error);
  }
}
