import { Metadata, type ServerDuplexStream } from '@grpc/grpc-js';
import { native, type SlabRange } from '../../native/index.js';
import { invalidArgument, SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardRequest } from '../common/generated/switchyard/v1/ForwardRequest.js';
import type { ForwardResponseInput } from '../common/generated/switchyard/v1/ForwardResponse.js';
import type { ForwardSummaryInput } from '../common/generated/switchyard/v1/ForwardSummary.js';
import { Deferred, onAbort } from '../common/lifecycle.js';
import { gateOf, type MessageGate } from '../common/message-gate.js';
import { toServiceError } from '../common/status.js';
import { traceparentOf } from '../common/traceparent.js';
import { systemClock } from '../runtime/system.js';
import { tokensPerMessage } from '../transport/chunk-size.js';
import { rowsOfMessage } from '../transport/port.js';
import type { BatchCall, RowsWay } from './batch-call.js';
import { BatchEnd, cancelMayFollow } from './batch-end.js';
import type { Reservation } from './budget.js';
import type { ClientMessage } from './check-chunk.js';
import { type ClientChannel, takesNothing } from './client-channel.js';
import type { ClientChannels } from './client-channels.js';

export type ForwardStream = ServerDuplexStream<ForwardRequest, ForwardResponseInput>;

export interface OneShotOptions {
  /** `clientStallMs`: a client that takes no answer, or owes a message, for so long has stalled. */
  stallMs: number;
  /** For clients that offer to send their chunks over UCX. */
  channels: ClientChannels;
}

/** How much sooner than a deadline the timer of gRPC may end a call. */
const timerSlackMs = 5;
/** How long what a client has not read of an ended call is kept for it. */
export const unreadMsMax = 5_000;
const batchOver = new SwitchyardError('CANCELLED', 'the batch is over');
const notReached = new SwitchyardError('LINK_LOST', 'the client sends its chunks over gRPC');

/**
 * A batch that is a Forward call of its own. It ends early when the client cancels or is gone, when a deadline passes, and
 * when the client neither sends nor reads what it must.
 */
export class OneShotCall implements BatchCall {
  readonly end = new BatchEnd(systemClock);
  readonly loggedAt = 'info';
  readonly peer: string;
  readonly traceparent: string;
  batchId = '';
  private readonly callDeadlineMs: number;
  private woken = new Deferred<void>();
  private halfClosed = false;
  private lastSend: Promise<void> = Promise.resolve();
  /** By which its messages over gRPC come in. */
  private readonly gate: MessageGate | null;
  /** Runs while a message of the client is awaited. */
  private awaiting: NodeJS.Timeout | null = null;
  /** Offered by the client and accepted here; null: chunks travel over gRPC. */
  private channel: ClientChannel | null = null;

  constructor(
    private readonly call: ForwardStream,
    private readonly options: OneShotOptions,
  ) {
    // A connection that is gone does not know it any more.
    this.peer = call.getPeer();
    this.traceparent = traceparentOf(call.metadata);
    this.gate = gateOf(call);
    if (this.gate !== null) this.gate.onAdmitted = () => this.idle();
    const wake = () => this.wake();
    call.on('readable', wake);
    call.on('end', () => {
      this.halfClosed = true;
      wake();
    });
    call.on('cancelled', () => this.cancelled());
    onAbort(this.end.signal, wake);
    // gRPC has made a date of the milliseconds that the client sent.
    const leftMs = Number(call.getDeadline()) - Date.now();
    this.callDeadlineMs = performance.now() + leftMs;
    if (call.cancelled) this.cancelled();
    if (Number.isFinite(leftMs)) this.end.limit(leftMs);
  }

  async header(): Promise<ForwardHeader> {
    // To the client they say that the batch is taken: one that is refused has none.
    this.call.sendMetadata(new Metadata());
    const first = (await this.next(() => false, 'a header'))?.request ?? null;
    if (!first?.header) {
      if (first === null) await cancelMayFollow(systemClock, this.end.signal);
      const came = first?.kind ?? (first === null ? 'half-close' : 'empty');
      throw invalidArgument('first message', came, 'a header');
    }
    this.batchId = first.header.batchId;
    if (first.header.deadlineMs > 0) this.end.limit(first.header.deadlineMs);
    await this.welcome(first.header);
    return first.header;
  }

  async way(): Promise<RowsWay> {
    if (!this.channel?.used) return { transport: 'grpc', lanes: 'http2' };
    return { transport: 'ucx', lanes: await this.channel.lanes() };
  }

  /**
   * The next message; null once the client has half-closed. Nothing is read ahead beyond one message, and the credit of
   * a channel. A client that sends no whole message for `stallMs` has stalled, unless the batch is `busy` with what it
   * sent before, or the message waits for room: that time does not count.
   */
  async next(busy: () => boolean, missing: string): Promise<ClientMessage | null> {
    const { stallMs } = this.options;
    const awaiting = setTimeout(() => {
      if (busy() || this.gate?.waiting) awaiting.refresh();
      else this.end.abort(sendsNothing(stallMs, missing));
    }, stallMs);
    this.awaiting = awaiting;
    try {
      for (;;) {
        this.end.signal.throwIfAborted();
        if (this.channel?.useless) this.closeChannel(batchOver);
        const message = this.channel?.take() ?? this.nextOfCall();
        if (message !== null) return message;
        if (this.halfClosed) return null;
        await this.woken.promise;
      }
    } finally {
      clearTimeout(awaiting);
      this.awaiting = null;
    }
  }

  idle(): void {
    this.awaiting?.refresh();
  }

  private nextOfCall(): ClientMessage | null {
    const request = this.call.read() as ForwardRequest | null;
    if (request === null) return null;
    const taken = this.gate?.claim() ?? (() => {});
    if (request.header) taken();
    if (request.chunk && this.channel?.used)
      throw invalidArgument('message on the stream', 'a chunk', 'half-close, as chunks come over UCX');
    // A client that cannot reach this end sends its chunks here after all.
    if (request.chunk) this.closeChannel(notReached);
    return {
      request,
      rows: rowsOfMessage(request.chunk?.rows ?? new Uint8Array(0), native),
      taken,
    };
  }

  answerTokensMax(rowBytes: number, routingBytes: number): number {
    if (this.channel === null) return tokensPerMessage(rowBytes, routingBytes);
    return this.channel.answerTokensMax(rowBytes, routingBytes);
  }

  answersInPlace(chunk: ChunkInput, rows: SlabRange): boolean {
    return this.channel?.sendsInPlace(chunk, rows) ?? false;
  }

  async answer(chunk: ChunkInput, rows: SlabRange, held: Reservation): Promise<void> {
    if (this.channel !== null) return this.channel.answer(chunk, rows, held, this.end.signal);
    const { slab, byteOffset, byteLength } = rows;
    const view = slab.view();
    try {
      await this.send({ chunk: { ...chunk, rows: Buffer.from(view.buffer, byteOffset, byteLength) } });
    } finally {
      // What was written has been copied behind its frame header; what was not never will be.
      native.endView(view);
      held.release();
    }
  }

  async complete(summary: ForwardSummaryInput): Promise<void> {
    // The summary must not overtake an answer.
    while (this.channel !== null && this.channel.outstandingBytes > 0) {
      this.end.signal.throwIfAborted();
      await this.woken.promise;
    }
    await this.send({ summary });
    this.end.clear();
    this.call.end();
    this.closeChannel(batchOver, { flush: true });
  }

  /** A client that stalled learns of it if it reads again soon: what it does not take is dropped. */
  fail(error: SwitchyardError): void {
    this.end.clear();
    this.end.abort(error);
    this.call.emit('error', toServiceError(error));
    setTimeout(() => this.gate?.cut(), unreadMsMax).unref();
    this.closeChannel(batchOver);
  }

  /** Answers a header's offer of a channel, if it has one. */
  private async welcome(header: ForwardHeader): Promise<void> {
    if (header.ucx === null) return;
    const { channels, stallMs } = this.options;
    const { side: channel, declined } = await channels.accept(header, {
      stallMs,
      onChange: () => this.wake(),
      onFailure: (error) => this.end.abort(error),
    });
    if (channel === null) return this.send({ welcome: { ucxDeclined: declined } });
    this.channel = channel;
    await this.send({ welcome: { ucx: channel.end } });
  }

  /** Sends one message after the other; resolves when it is on its way to the client. */
  private send(response: ForwardResponseInput): Promise<void> {
    const sent = this.lastSend.then(() => this.write(response));
    this.lastSend = sent.catch(() => {});
    return sent;
  }

  private closeChannel(reason: SwitchyardError, { flush } = { flush: false }): void {
    this.channel?.close(reason, { flush });
    this.channel = null;
  }

  private wake(): void {
    this.woken.resolve();
    this.woken = new Deferred();
  }

  private cancelled(): void {
    const error =
      performance.now() >= this.callDeadlineMs - timerSlackMs
        ? new SwitchyardError('DEADLINE_EXCEEDED', 'the deadline of the call passed')
        : new SwitchyardError('CANCELLED', 'the client cancelled the call or is gone');
    this.end.abort(error);
  }

  private async write(response: ForwardResponseInput): Promise<void> {
    this.end.signal.throwIfAborted();
    const stalled = setTimeout(() => {
      this.end.abort(takesNothing(this.options.stallMs));
    }, this.options.stallMs);
    // The callback never comes if the stream ends meanwhile, so the signal ends the wait too.
    const written = new Deferred<void>();
    const forget = onAbort(this.end.signal, () => written.reject(this.end.signal.reason));
    try {
      this.call.write(response, () => written.resolve());
      await written.promise;
    } finally {
      clearTimeout(stalled);
      forget();
    }
  }
}

/** The error of a client that owes a message: what is missing. */
export function sendsNothing(stallMs: number, missing: string): SwitchyardError {
  const message =
    `the client has sent no whole message for ${stallMs} ms; allowed: less, as clientStallMs has it; ` +
    `missing: ${missing}`;
  return new SwitchyardError('CLIENT_STALLED', message, { stallMs, missing });
}
