import { setMaxListeners } from 'node:events';
import type { ServerDuplexStream } from '@grpc/grpc-js';
import { native, type SlabRange } from '../../native/index.js';
import { invalidArgument, SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardRequest } from '../common/generated/switchyard/v1/ForwardRequest.js';
import type { ForwardResponseInput } from '../common/generated/switchyard/v1/ForwardResponse.js';
import { abortable, Deferred } from '../common/lifecycle.js';
import { toServiceError } from '../common/status.js';
import type { ChunkChannel } from '../transport/chunk-channel.js';
import { chunkCost, tokensPerMessage, tokensWithin } from '../transport/chunk-size.js';
import type { TransportKind } from '../transport/link.js';
import { rowsOfMessage } from '../transport/port.js';
import type { ClientMessage } from './check-chunk.js';
import { type ClientChannels, channelLost } from './client-channels.js';

export type ForwardStream = ServerDuplexStream<ForwardRequest, ForwardResponseInput>;

const timerMsMax = 2 ** 31 - 1;
/** How much sooner than a deadline the timer of gRPC may end a call. */
const timerSlackMs = 5;
/** A client that ends its call ends its channel too; its cancellation may be heard a little later. */
const channelGraceMs = 500;
const batchOver = new SwitchyardError('CANCELLED', 'the batch is over');
const notReached = new SwitchyardError('LINK_LOST', 'the client sends its chunks over gRPC');

/**
 * A client's Forward call. `signal` ends everything that works for it: when the client cancels or is gone, when a
 * deadline passes, when it stops reading, or by `abort`. Its reason is a SwitchyardError, the first one that came.
 */
export class ClientStream {
  /** When the call ends, as performance.now(); Infinity: never. */
  deadlineMs = Number.POSITIVE_INFINITY;
  /** The deadline of the call itself. */
  private readonly callDeadlineMs: number;
  private readonly controller = new AbortController();
  private readonly timers: NodeJS.Timeout[] = [];
  private woken = new Deferred<void>();
  private ended = false;
  private lastSend: Promise<void> = Promise.resolve();
  /** Runs while a message of the client is awaited. */
  private awaiting: NodeJS.Timeout | null = null;
  /** Offered by the client and accepted here; null: chunks travel over gRPC. */
  private channel: ChunkChannel | null = null;
  private channelClosed: () => void = () => {};
  private channelUsed = false;
  private stalled: NodeJS.Timeout | null = null;

  constructor(
    private readonly call: ForwardStream,
    /** `clientStallMs`: a client that takes no answer, or owes a message, for so long has stalled. */
    private readonly stallMs: number,
  ) {
    setMaxListeners(0, this.signal);
    const wake = () => this.wake();
    call.on('readable', wake);
    call.on('end', () => {
      this.ended = true;
      wake();
    });
    call.on('cancelled', () => this.cancelled());
    this.signal.addEventListener('abort', wake, { once: true });
    // gRPC has made a date of the milliseconds that the client sent.
    const leftMs = Number(call.getDeadline()) - Date.now();
    this.callDeadlineMs = performance.now() + leftMs;
    if (call.cancelled) this.cancelled();
    if (Number.isFinite(leftMs)) this.limit(leftMs);
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  get peer(): string {
    return this.call.getPeer();
  }

  /** The first error stays. */
  abort(error: SwitchyardError): void {
    if (!this.signal.aborted) this.controller.abort(error);
  }

  /** Ends the call with DEADLINE_EXCEEDED after `ms` milliseconds. The soonest of several limits counts. */
  limit(ms: number): void {
    this.deadlineMs = Math.min(this.deadlineMs, performance.now() + ms);
    const expire = () =>
      this.abort(new SwitchyardError('DEADLINE_EXCEEDED', 'the deadline of the batch passed'));
    this.timers.push(setTimeout(expire, Math.min(Math.max(ms, 0), timerMsMax)));
  }

  /** Answers a header's offer of a channel, if it has one. */
  async welcome(header: ForwardHeader, channels: ClientChannels): Promise<void> {
    if (header.ucx === null) return;
    const accepted = await channels.accept(header, () => this.channelChanged());
    if (accepted !== null) {
      this.channel = accepted.channel;
      this.channelClosed = accepted.closed;
    }
    await this.send({ welcome: { ucx: this.channel?.end ?? null } });
  }

  /** What carries the chunks, and its lanes. It is known from the first chunk on. */
  async transport(): Promise<{ transport: TransportKind; lanes: string }> {
    if (this.channel === null || !this.channelUsed) return { transport: 'grpc', lanes: 'http2' };
    return { transport: 'ucx', lanes: await this.channel.lanes() };
  }

  /**
   * The next message; null once the client has half-closed. Nothing is read ahead beyond one message, and the credit of
   * a channel. A client that sends no whole message for `stallMs` has stalled, unless the batch is `busy` with what it
   * sent before: that time does not count.
   */
  async next(busy: () => boolean): Promise<ClientMessage | null> {
    const awaiting = setTimeout(() => {
      if (busy()) awaiting.refresh();
      else this.abort(sendsNothing(this.stallMs));
    }, this.stallMs);
    this.awaiting = awaiting;
    try {
      for (;;) {
        this.signal.throwIfAborted();
        const message = this.nextOfChannel() ?? this.nextOfCall();
        if (message !== null) return message;
        if (this.ended) return null;
        await this.woken.promise;
      }
    } finally {
      clearTimeout(awaiting);
      this.awaiting = null;
    }
  }

  /** The batch is no longer busy: its client has its whole time from now on. */
  idle(): void {
    this.awaiting?.refresh();
  }

  private nextOfChannel(): ClientMessage | null {
    const { channel } = this;
    const arrived = channel?.take() ?? null;
    if (channel === null || arrived === null) return null;
    this.channelUsed = true;
    const { chunk, slab, rowBytes, cost } = arrived;
    return {
      request: { kind: 'chunk', chunk },
      rows: { kind: 'slab', slab, byteLength: rowBytes },
      taken: () => channel.giveBack(cost),
    };
  }

  private nextOfCall(): ClientMessage | null {
    const request = this.call.read() as ForwardRequest | null;
    if (request === null) return null;
    if (request.chunk && this.channelUsed)
      throw invalidArgument('message on the stream', 'a chunk', 'half-close, as chunks come over UCX');
    // A client that cannot reach this end sends its chunks here after all.
    if (request.chunk) this.closeChannel(notReached);
    return { request, rows: rowsOfMessage(request.chunk?.rows ?? new Uint8Array(0)), taken: () => {} };
  }

  /** How many tokens an answer may have: as large as they are, or as their routing is. */
  answerTokensMax(rowBytes: number, routingBytes: number): number {
    if (this.channel === null) return tokensPerMessage(rowBytes, routingBytes);
    // Half of the client's window, so that it can take one answer while another is on its way.
    return tokensWithin(rowBytes, routingBytes, this.channel.peerWindowBytes / 2);
  }

  /** Sends an answer: rows [, hidden] of a slab that nobody writes to any more. Resolves when it may be released. */
  async answer(chunk: ChunkInput, rows: SlabRange, hidden: number): Promise<void> {
    const { channel } = this;
    const { slab, byteOffset, byteLength } = rows;
    if (channel === null) {
      const view = slab.view();
      await this.send({ chunk: { ...chunk, rows: Buffer.from(view.buffer, byteOffset, byteLength) } });
      // gRPC has a copy: the memory need not wait for the garbage collector.
      native.endView(view);
      return;
    }
    const routingBytes = (chunk.experts?.length ?? 0) + (chunk.weights?.length ?? 0);
    await channel.reserve(chunkCost(byteLength, routingBytes), this.signal);
    this.watchAnswers();
    // Sums have room behind them for an offset, and for no routing.
    const whole = routingBytes === 0 && byteOffset === 0 && byteLength === slab.byteLength;
    if (whole) channel.send(chunk, { slab, bytes: byteLength });
    else await abortable(channel.sendCopy(chunk, rows, hidden), this.signal);
  }

  /** Resolves when the client has taken every answer. */
  async answersTaken(): Promise<void> {
    while (this.channel !== null && this.channel.outstandingBytes > 0) {
      this.signal.throwIfAborted();
      await this.woken.promise;
    }
  }

  /** Sends one message after the other; resolves when it is on its way to the client. */
  send(response: ForwardResponseInput): Promise<void> {
    const sent = this.lastSend.then(() => this.write(response));
    this.lastSend = sent.catch(() => {});
    return sent;
  }

  /** Ends the call well. */
  finish(): void {
    this.clear();
    this.call.end();
    this.closeChannel();
  }

  /** Ends the call with an error. A client that stalled learns of it when it reads again. */
  fail(error: SwitchyardError): void {
    this.clear();
    this.abort(error);
    this.call.emit('error', toServiceError(error));
    this.closeChannel();
  }

  private clear(): void {
    for (const timer of this.timers) clearTimeout(timer);
  }

  private closeChannel(reason = batchOver): void {
    if (this.stalled !== null) clearTimeout(this.stalled);
    this.channel?.close(reason);
    this.channelClosed();
    this.channel = null;
  }

  private channelChanged(): void {
    const failure = this.channel?.failure ?? null;
    if (failure === null) this.watchAnswers(true);
    else if (failure.code !== 'LINK_LOST') this.abort(failure);
    else if (this.channelUsed)
      this.timers.push(setTimeout(() => this.abort(channelLost(failure)), channelGraceMs));
    else this.closeChannel();
    this.wake();
  }

  /** The client has stalled if it takes none of the answers that are outstanding for `stallMs`. */
  private watchAnswers(progress = false): void {
    const waiting = this.channel !== null && this.channel.outstandingBytes > 0;
    if (this.stalled !== null && (progress || !waiting)) {
      clearTimeout(this.stalled);
      this.stalled = null;
    }
    if (waiting) this.stalled ??= setTimeout(() => this.abort(takesNothing(this.stallMs)), this.stallMs);
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
    this.abort(error);
  }

  private async write(response: ForwardResponseInput): Promise<void> {
    this.signal.throwIfAborted();
    const stalled = setTimeout(() => {
      this.abort(takesNothing(this.stallMs));
    }, this.stallMs);
    // The callback never comes if the stream ends meanwhile, so the signal ends the wait too.
    const written = new Deferred<void>();
    const onAbort = () => written.reject(this.signal.reason);
    this.signal.addEventListener('abort', onAbort, { once: true });
    try {
      this.call.write(response, () => written.resolve());
      await written.promise;
    } finally {
      clearTimeout(stalled);
      this.signal.removeEventListener('abort', onAbort);
    }
  }
}

function takesNothing(stallMs: number): SwitchyardError {
  const message = `the client has taken no answer for ${stallMs} ms; allowed: less, as clientStallMs has it`;
  return new SwitchyardError('CLIENT_STALLED', message, { stallMs });
}

function sendsNothing(stallMs: number): SwitchyardError {
  const message =
    `the client has sent no whole message for ${stallMs} ms; allowed: less, as clientStallMs has it; ` +
    'expected: a header, rows, and half-close after the last token';
  return new SwitchyardError('CLIENT_STALLED', message, { stallMs });
}
