import type { ServerDuplexStream } from '@grpc/grpc-js';
import { native } from '../../native/index.js';
import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import type { SessionBatch } from '../common/generated/switchyard/v1/SessionBatch.js';
import type { SessionHello } from '../common/generated/switchyard/v1/SessionHello.js';
import type { SessionRequest } from '../common/generated/switchyard/v1/SessionRequest.js';
import type { SessionResponseInput } from '../common/generated/switchyard/v1/SessionResponse.js';
import type { SessionWelcomeInput } from '../common/generated/switchyard/v1/SessionWelcome.js';
import { LiveMap } from '../common/live.js';
import type { Logger } from '../common/log.js';
import { gateOf, type MessageGate } from '../common/message-gate.js';
import { toServiceError } from '../common/status.js';
import { traceparentOf } from '../common/traceparent.js';
import { sessionTokensMax } from '../transport/chunk-size.js';
import { MessageWriter } from '../transport/grpc/writer.js';
import { acceptUcx, type UcxAcceptor } from '../transport/handshake.js';
import { type ArrivedRows, dropRows, rowsOfMessage } from '../transport/port.js';
import type { Fabric } from '../transport/ucx/source.js';
import type { Batches } from './batches.js';
import type { ChannelWindows } from './channel-windows.js';
import { takesNothing } from './client-channel.js';
import { sendsNothing, unreadMsMax } from './one-shot-call.js';
import { SessionCall, type SessionWay } from './session-call.js';
import { SessionChannel, type SessionChannelOptions } from './session-channel.js';

export type SessionStream = ServerDuplexStream<SessionRequest, SessionResponseInput>;

export interface ClientSessionOptions {
  router: string;
  /** `clientStallMs`: a client that takes no answer, or does not say the whole of what it began, for so long has stalled. */
  stallMs: number;
  acceptor: UcxAcceptor;
  windows: ChannelWindows;
  batches: Batches;
  log: Logger;
  onEnd: () => void;
}

/** Batches of a session that may be under way. */
const sessionBatchesMax = 64;
/** A client learns of an answer a little before its router hears that it has left. */
const slack = 2;
/** What batches of a session over UCX may cost at once, at most. */
const sessionWindowBytes = 8 * 1024 * 1024;
/** How often in the time that a client has it is looked whether it stalls. */
const looksPerStall = 4;

const sessionOver = new SwitchyardError('CANCELLED', 'the session is over');

const secondHello = () => invalidArgument('kind', 'hello', 'one hello on a session');

/** A client's Session call: its batches are a router's like any other, and none of them ends it. */
export class ClientSession {
  readonly peer: string;
  private readonly traceparent: string;
  private readonly writer: MessageWriter<SessionResponseInput>;
  private readonly stream: SessionWay;
  private channel: SessionChannel | null = null;
  private readonly gate: MessageGate | null;
  private readonly timer: NodeJS.Timeout;
  /** By number, until what ends it for its client has left. */
  private readonly live = new LiveMap<number, SessionCall>();
  private lastNumber = 0;
  /** The client has said hello. */
  private opened = false;
  private halfClosed = false;
  private over = false;
  private readonly startedMs = performance.now();
  /** When an answer left. */
  private leftMs = 0;
  private batchCount = 0;

  constructor(
    private readonly call: SessionStream,
    private readonly options: ClientSessionOptions,
  ) {
    // A connection that is gone does not know it any more.
    this.peer = call.getPeer();
    this.traceparent = traceparentOf(call.metadata);
    this.gate = gateOf(call);
    this.writer = new MessageWriter(call, native, () => this.idle());
    this.stream = { port: this.writer, transport: 'grpc', lanes: 'http2' };
    this.timer = setInterval(() => this.look(), options.stallMs / looksPerStall);
    call.on('data', (message: SessionRequest) => {
      const rows = rowsOfMessage(message.batch?.rows ?? new Uint8Array(0), native);
      this.receive(message, rows, this.stream, this.gate?.claim() ?? (() => {}));
    });
    call.on('end', () => {
      this.halfClosed = true;
      this.idle();
    });
    const gone = new SwitchyardError('CANCELLED', 'the client ended the session or is gone');
    call.on('cancelled', () => this.close(gone));
  }

  /** Ends the call well, when the batches under way are answered. */
  finish(): void {
    this.halfClosed = true;
    this.idle();
  }

  /** Ends the session, and every batch of it. */
  fail(error: SwitchyardError): void {
    if (this.over) return;
    this.options.log.warn({
      event: 'session-failed',
      client: this.peer,
      code: error.code,
      reason: error.message,
    });
    this.close(error);
    this.call.emit('error', toServiceError(error));
    setTimeout(() => this.gate?.cut(), unreadMsMax).unref();
  }

  private receive(message: SessionRequest, rows: ArrivedRows, way: SessionWay, taken: () => void): void {
    try {
      if (this.over) throw sessionOver;
      if (message.batch) {
        this.begin(message.batch, rows, way, taken);
        return;
      }
      taken();
      dropRows(rows);
      if (message.hello)
        void this.hello(message.hello, way).catch((error) => this.fail(asSwitchyardError(error)));
      else if (message.cancel) this.cancel(message.cancel.number);
      else throw invalidArgument('kind of a session message', 'none', 'hello, batch, cancel');
    } catch (error) {
      taken();
      dropRows(rows);
      this.fail(asSwitchyardError(error));
    }
  }

  private begin(batch: SessionBatch, rows: ArrivedRows, way: SessionWay, taken: () => void): void {
    const { number } = batch;
    if (!this.opened) throw invalidArgument('first message', 'batch', 'a hello');
    if (!Number.isSafeInteger(number) || number <= this.lastNumber) {
      throw invalidArgument('batch.number', number, `above ${this.lastNumber}, the last one, and below 2^53`);
    }
    if (this.live.size >= sessionBatchesMax * slack) {
      const text = `${this.live.size} batches of the session are not answered; allowed: ${sessionBatchesMax}, as the welcome says`;
      throw new SwitchyardError('RESOURCE_EXHAUSTED', text, { allowed: sessionBatchesMax });
    }
    this.lastNumber = number;
    this.batchCount += 1;
    const call = new SessionCall({
      batch,
      rows,
      way,
      peer: this.peer,
      traceparent: this.traceparent,
      taken,
      onAnswered: () => {
        this.live.delete(number);
        this.leftMs = performance.now();
        this.idle();
      },
    });
    this.live.set(number, call);
    this.options.batches.accept(call);
  }

  private cancel(number: number): void {
    const cancelled = new SwitchyardError('CANCELLED', 'the client cancelled the batch');
    this.live.get(number)?.end.abort(cancelled);
  }

  private async hello(hello: SessionHello, way: SessionWay): Promise<void> {
    if (way !== this.stream) {
      const channel = this.channel!;
      if (channel.heard) throw secondHello();
      channel.heard = true;
      await channel.open();
      return this.welcome(way, {});
    }
    if (this.opened) throw secondHello();
    this.opened = true;
    if (hello.ucx === null) return this.welcome(way, {});
    const { acceptor } = this.options;
    const answer = await acceptUcx(hello, acceptor, (ucx) => this.openChannel(ucx, hello.ucxKey));
    const { side } = answer;
    if (this.over) return side?.close(sessionOver);
    this.channel = side;
    this.welcome(
      way,
      side === null
        ? { ucxDeclined: answer.declined, ucxMayPass: answer.mayPass }
        : { ucx: side.end, windowBytes: side.windowBytes },
    );
  }

  private openChannel(ucx: Fabric, key: Uint8Array): SessionChannel | string {
    const onMessage: SessionChannelOptions['onMessage'] = (...arrived) => this.receive(...arrived);
    const onFailure = (error: SwitchyardError) => this.fail(error);
    return this.options.windows.giveTo(
      (window) => new SessionChannel(ucx, { key, window, onMessage, onFailure }),
      0,
      sessionWindowBytes,
    );
  }

  private welcome({ port, transport, lanes }: SessionWay, about: SessionWelcomeInput): void {
    const { router, log } = this.options;
    const welcome = { router, batchesMax: sessionBatchesMax, tokensMax: sessionTokensMax, ...about };
    port.send({ make: () => ({ welcome }), rows: null, done: () => {} });
    log.info({ event: 'session-opened', client: this.peer, transport, lanes, reason: about.ucxDeclined });
  }

  /** Ends the session of a client that owes a hello, or the rest of a message, or takes no answer. */
  private look(): void {
    const { stallMs } = this.options;
    const since = performance.now() - stallMs;
    const begunMs = this.opened ? (this.gate?.incompleteSinceMs ?? null) : this.startedMs;
    const missing = this.opened ? 'the rest of a message' : 'the hello';
    if (begunMs !== null && begunMs <= since) this.fail(sendsNothing(stallMs, missing));
    const untaken = this.live.values().some(({ answeredMs }) => answeredMs <= since);
    if (untaken && this.leftMs <= since) this.fail(takesNothing(stallMs));
  }

  /** Ends the call, if that is due. */
  private idle(): void {
    if (this.over || !this.halfClosed || this.live.size > 0 || this.writer.queued > 0) return;
    this.close(sessionOver);
    this.call.end();
  }

  private close(reason: SwitchyardError): void {
    if (this.over) return;
    this.over = true;
    clearInterval(this.timer);
    for (const { end } of this.live.values()) end.abort(reason);
    this.writer.destroy();
    this.channel?.close(reason);
    this.options.log.info({ event: 'session-closed', client: this.peer, batches: this.batchCount });
    this.options.onEnd();
  }
}
