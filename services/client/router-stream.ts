import { type ClientDuplexStream, type StatusObject, status } from '@grpc/grpc-js';
import type { SlabRange } from '../../native/index.js';
import { hostOf } from '../common/address.js';
import { adviseAdvertiseHost } from '../common/advertise.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeaderInput } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardRequestInput } from '../common/generated/switchyard/v1/ForwardRequest.js';
import type { ForwardResponse } from '../common/generated/switchyard/v1/ForwardResponse.js';
import type { ForwardWelcome } from '../common/generated/switchyard/v1/ForwardWelcome.js';
import { Deferred } from '../common/lifecycle.js';
import { LiveSet } from '../common/live.js';
import { fromServiceError } from '../common/status.js';
import type { ArrivedChunk, ChunkChannel } from '../transport/chunk-channel.js';
import { chunkCost, tokensPerMessage, tokensWithin } from '../transport/chunk-size.js';
import type { TransportChoice, TransportKind } from '../transport/link.js';
import { ucxLoss } from '../transport/ucx/source.js';
import type { BatchStream, RouterAnswer } from './batch-stream.js';
import { RouterChunk } from './router-chunk.js';
import { openChunkChannel, openMsOf, type UnreachableByUcx } from './ucx.js';

export interface RouterStreamOptions {
  /** host:port */
  router: string;
  call: ClientDuplexStream<ForwardRequestInput, ForwardResponse>;
  transport: TransportChoice;
  /** Chunks that leave this machine over UCX do so encrypted. */
  encrypted: boolean;
  /** What the router takes in one message: bytes of rows and routing. */
  messageBytesMax: number;
  unreachable: UnreachableByUcx;
}

/** A chunk over UCX has at least so many bytes of rows, where the tokens allow it. */
const ucxRowBytesMin = 1 << 20;
/** How long after the loss of a channel the call may take to say why. */
const channelGraceMs = 500;
/** A router that has not said by then whether it takes a batch is sent the rows: those of older versions do not say it. */
const takenMsMax = 1_000;

/** One batch's call to one router: header, summary and errors over gRPC, chunks over UCX where both ends have it. */
export class RouterStream implements BatchStream {
  transport: TransportKind = 'grpc';
  /** What carries the chunks, for example "mapped posix". */
  lanes = 'http2';
  private channel: ChunkChannel | null = null;
  private readonly over = new AbortController();
  private status: StatusObject | null = null;
  private readonly failed = new Deferred<SwitchyardError>();
  private ended = false;
  /** Answers whose rows nobody has taken yet. */
  private readonly untaken = new LiveSet<RouterChunk>();
  /** When the channel was found lost. */
  private lostMs: number | null = null;
  private woken = new Deferred<void>();
  /** Until then the call's first message is awaited by `open`. */
  private readonly opened = new Deferred<void>();
  /** The router has taken the batch, or the call is over. */
  private readonly taken = new Deferred<void>();

  constructor(private readonly options: RouterStreamOptions) {
    const { call } = options;
    const wake = () => this.wake();
    call.on('readable', wake).on('drain', wake);
    call.on('metadata', () => this.taken.resolve());
    call.on('end', () => {
      this.ended = true;
      wake();
    });
    call.on('status', (result: StatusObject) => this.finish(result));
    // The status says the same, and comes even when nobody reads.
    call.on('error', () => {});
  }

  /** host:port, for errors. */
  get router(): string {
    return this.options.router;
  }

  /** Resolves with what the call ended with, unless that is OK, also when nobody reads. */
  get failure(): Promise<SwitchyardError> {
    return this.failed.promise;
  }

  /**
   * Sends the header and opens the way for chunks, once the router has taken the batch. Rejects with what it refuses the batch
   * with, and with LINK_LOST if the way must be UCX and cannot be.
   */
  async open(header: ForwardHeaderInput): Promise<void> {
    try {
      const offer = await this.offer();
      await this.write({ header: { ...header, ...offer } });
      await this.untilTaken();
      if (this.channel !== null) await this.openChannel(this.channel);
    } finally {
      this.opened.resolve();
    }
  }

  /**
   * How many tokens a chunk should have. `wished`: what the router makes chunks of; it takes a chunk of just that size over
   * UCX as it is.
   */
  chunkTokens(rowBytes: number, routingBytes: number, wished: number): number {
    if (this.channel === null) return tokensPerMessage(rowBytes, routingBytes, this.options.messageBytesMax);
    // Half of the window, so that the router can take one chunk while another is on its way.
    const max = tokensWithin(rowBytes, routingBytes, this.channel.peerWindowBytes / 2);
    return wished <= max && wished * rowBytes >= ucxRowBytesMin ? wished : max;
  }

  /** Resolves when the router has room for a chunk; false: the call is over, and `answers` tells why. */
  async reserve(rowBytes: number, routingBytes: number): Promise<boolean> {
    if (!this.going || this.channel === null) return this.going;
    try {
      await this.channel.reserve(chunkCost(rowBytes, routingBytes), this.over.signal);
    } catch (error) {
      if (this.going) throw error;
    }
    return this.going;
  }

  /** Sends a chunk that has room. Resolves when its rows may be changed; false: the call is over. */
  async send(chunk: ChunkInput, rows: Uint8Array | SlabRange): Promise<boolean> {
    if (!this.going) return false;
    if (this.channel !== null) await this.channel.sendCopy(chunk, rows);
    else await this.write({ chunk: { ...chunk, rows: bufferOf(rows as Uint8Array) } });
    return this.going;
  }

  /** No more chunks follow. Over UCX the router learns of it when it has taken them all. */
  async end(): Promise<void> {
    while (this.going && (this.channel?.outstandingBytes ?? 0) > 0) await this.woken.promise;
    this.options.call.end();
  }

  cancel(): void {
    this.options.call.cancel();
  }

  /** Everything the router answers. Throws what the call ended with, unless that is OK. */
  async *answers(): AsyncGenerator<RouterAnswer, void, void> {
    await this.opened.promise;
    for (;;) {
      if (this.status !== null && this.status.code !== status.OK) throw streamError(this.status, this.router);
      const arrived = this.channel?.take() ?? null;
      const response = arrived === null ? (this.options.call.read() as ForwardResponse | null) : null;
      if (arrived !== null) {
        yield { chunk: this.received(arrived), summary: null };
      } else if (response?.chunk) yield { chunk: new RouterChunk(response.chunk, null), summary: null };
      else if (response?.summary) yield { chunk: null, summary: response.summary };
      else if (this.ended && this.status !== null) return;
      else if (response === null) {
        this.checkChannel();
        await this.woken.promise;
      }
    }
  }

  private received(arrived: ArrivedChunk): RouterChunk {
    const taken = () => this.untaken.delete(chunk);
    const chunk = new RouterChunk(arrived.chunk, { channel: this.channel!, arrived, taken });
    this.untaken.add(chunk);
    return chunk;
  }

  /** Whether chunks may follow. */
  private get going(): boolean {
    return this.status === null && !this.channel?.failure;
  }

  /** What the header says of UCX. */
  private async offer(): Promise<Pick<ForwardHeaderInput, 'ucx' | 'ucxKey'>> {
    const { transport, router, encrypted, unreachable } = this.options;
    if (!unreachable.tries(router, transport)) return {};
    try {
      const { channel, key } = await openChunkChannel(hostOf(router), encrypted, () => this.wake());
      this.channel = channel;
      return { ucx: channel.end, ucxKey: key };
    } catch (error) {
      this.giveUpUcx(asSwitchyardError(error));
      return {};
    }
  }

  private async untilTaken(): Promise<void> {
    const timer = setTimeout(() => this.taken.resolve(), takenMsMax);
    await this.taken.promise;
    clearTimeout(timer);
    if (this.status === null || this.status.code === status.OK) return;
    const refusal = streamError(this.status, this.router);
    // The call may have ended before there was a channel.
    this.channel?.close(refusal);
    this.channel = null;
    throw refusal;
  }

  private async openChannel(channel: ChunkChannel): Promise<void> {
    const expired = new Deferred<never>();
    expired.promise.catch(() => {});
    const openMs = openMsOf(this.options.transport === 'auto');
    const timer = setTimeout(() => {
      this.options.unreachable.add(this.router);
      expired.reject(ucxLoss(`router ${this.router} was not reached by it within ${openMs} ms`));
    }, openMs);
    try {
      const { ucx, ucxDeclined } = await Promise.race([this.welcome(), expired.promise]);
      if (ucx === null) throw ucxLoss(`router ${this.router} takes chunks over gRPC alone: ${ucxDeclined}`);
      await channel.connect(ucx);
      channel.grant();
      await Promise.race([channel.opened, expired.promise]);
      this.lanes = await channel.lanes();
      this.transport = 'ucx';
    } catch (error) {
      this.giveUpUcx(asSwitchyardError(error));
    } finally {
      clearTimeout(timer);
    }
  }

  /** What the router answers to the offer. */
  private async welcome(): Promise<ForwardWelcome> {
    for (;;) {
      const response = this.options.call.read() as ForwardResponse | null;
      if (response?.welcome) return response.welcome;
      if (response !== null) return { ucx: null, ucxDeclined: 'it does not answer the offer' };
      if (this.status !== null) return { ucx: null, ucxDeclined: 'the call is over' };
      await this.woken.promise;
    }
  }

  /** Chunks go over gRPC after all, unless they must not. */
  private giveUpUcx(error: SwitchyardError): void {
    this.channel?.close(error);
    this.channel = null;
    // What ended the call is the better reason.
    if (this.options.transport === 'ucx' && this.status === null) throw error;
  }

  /** Throws the loss of the channel, once the call has had time to say why. */
  private checkChannel(): void {
    const failure = this.channel?.failure;
    if (!failure || this.status !== null) return;
    if (failure.code !== 'LINK_LOST') throw failure;
    this.lostMs ??= performance.now();
    if (performance.now() - this.lostMs >= channelGraceMs) throw routerLost(this.router, failure);
    setTimeout(() => this.wake(), channelGraceMs);
  }

  /** Resolves when the stream can take the next message, or when the call is over. */
  private async write(message: ForwardRequestInput): Promise<void> {
    const { call } = this.options;
    if (this.status !== null || call.write(message)) return;
    while (this.status === null && call.writableNeedDrain) await this.woken.promise;
  }

  private finish(result: StatusObject): void {
    this.status = result;
    this.taken.resolve();
    const reason = new SwitchyardError('CANCELLED', 'the call is over');
    this.over.abort(reason);
    const lost = result.code === status.OK ? reason : streamError(result, this.router);
    if (result.code !== status.OK) this.failed.resolve(lost);
    for (const chunk of this.untaken.values()) chunk.drop(lost);
    // Before an OK the router has seen that every answer was taken.
    this.channel?.close(reason);
    this.wake();
  }

  private wake(): void {
    this.woken.resolve();
    this.woken = new Deferred();
  }
}

function bufferOf(rows: Uint8Array): Buffer {
  return Buffer.from(rows.buffer, rows.byteOffset, rows.byteLength);
}

/** What a call to a router failed with; a broken connection is the loss of that router. */
export function routerError(thrown: unknown, router: string): SwitchyardError {
  const error = fromServiceError(thrown);
  const reset = error.code === 'INTERNAL' && /RST_STREAM|ECONNRESET/.test(error.message);
  return error.code === 'LINK_LOST' || reset ? routerLost(router, error) : error;
}

/** The same of a stream, which a router resets if it cannot tell the client why it has ended: it does not read. */
export function streamError(ended: StatusObject, router: string): SwitchyardError {
  const error = routerError(ended, router);
  // What grpc-js calls ENHANCE_YOUR_CALM.
  if (error.code !== 'RESOURCE_EXHAUSTED' || !error.message.startsWith('Bandwidth exhausted')) return error;
  const text = `router ${router} has given the call up: what it answered was not taken; allowed: within its clientStallMs`;
  return new SwitchyardError('CLIENT_STALLED', text, { router }, { cause: error });
}

/** The loss of a router. */
export function routerLost(router: string, thrown: SwitchyardError): SwitchyardError {
  const text = `router ${router} was lost: ${adviseAdvertiseHost(thrown, 'that node').message}`;
  return new SwitchyardError('ROUTER_LOST', text, { router }, { cause: thrown });
}
