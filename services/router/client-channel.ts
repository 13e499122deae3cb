import type { SlabRange } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { UcxEnd, UcxEndInput } from '../common/generated/switchyard/v1/UcxEnd.js';
import { abortable, type EndSignal } from '../common/lifecycle.js';
import { ChunkChannel } from '../transport/chunk-channel.js';
import { chunkCost, routingBytesOf, tokensWithin } from '../transport/chunk-size.js';
import type { Fabric } from '../transport/ucx/source.js';
import type { Reservation } from './budget.js';
import type { ClientMessage } from './check-chunk.js';

export interface ClientChannelOptions {
  /** The secret of the channel, 16 bytes. */
  key: Uint8Array;
  /** Bytes of chunks that the client may have outstanding. */
  windowBytes: number;
  /** A client that takes none of its answers for so long has stalled. */
  stallMs: number;
  /** Called when something has come, or the channel is lost. */
  onChange: () => void;
  /** Called with what ends the batch. */
  onFailure: (error: SwitchyardError) => void;
  /** Called once, when the window is free again. */
  onClosed: () => void;
}

/** A client that ends its call ends its channel too; its cancellation may be heard a little later. */
export const channelGraceMs = 500;

/** The chunks and the answers of one batch over UCX, as its router sees them. */
export class ClientChannel {
  private readonly channel: ChunkChannel;
  private chunksCame = false;
  private stalled: NodeJS.Timeout | null = null;
  private lost: NodeJS.Timeout | undefined;

  constructor(
    ucx: Fabric,
    private readonly options: ClientChannelOptions,
  ) {
    const { key, windowBytes } = options;
    this.channel = new ChunkChannel(ucx, {
      key,
      windowBytes,
      reportSends: true,
      onChange: () => this.changed(),
    });
  }

  /** What the client must know to send here. */
  get end(): UcxEndInput {
    return this.channel.end;
  }

  /** Chunks travel here: the first one did. */
  get used(): boolean {
    return this.chunksCame;
  }

  /** Lost before a chunk came, so that chunks may come over gRPC. */
  get useless(): boolean {
    return !this.used && this.channel.failure !== null;
  }

  /** Bytes of answers that the client has not taken. */
  get outstandingBytes(): number {
    return this.channel.outstandingBytes;
  }

  /** Rejects with LINK_LOST if UCX sees at once that the client cannot be reached. It gets its credit once it was heard. */
  async connect(end: UcxEnd): Promise<void> {
    await this.channel.connect(end);
    this.channel.opened.then(
      () => this.channel.grant(),
      () => {},
    );
  }

  lanes(): Promise<string> {
    return this.channel.lanes();
  }

  /** The next chunk that has come; null: none has. */
  take(): ClientMessage | null {
    const arrived = this.channel.take();
    if (arrived === null) return null;
    this.chunksCame = true;
    const { chunk, slab, rowBytes, cost } = arrived;
    return {
      request: { kind: 'chunk', chunk },
      rows: { kind: 'slab', slab, byteLength: rowBytes },
      taken: () => this.channel.giveBack(cost),
    };
  }

  /** How many tokens an answer may have: half of the client's window, so that it can take one while another is on its way. */
  answerTokensMax(rowBytes: number, routingBytes: number): number {
    return tokensWithin(rowBytes, routingBytes, this.channel.peerWindowBytes / 2);
  }

  /** Whether rows go out from the slab that they are in: sums have room behind them for an offset, and for no routing. */
  sendsInPlace({ experts, weights }: ChunkInput, { slab, byteOffset, byteLength }: SlabRange): boolean {
    return !experts && !weights && byteOffset === 0 && byteLength === slab.byteLength;
  }

  /**
   * Sends an answer once the client has credit for it. Resolves when the slab may be released. `held` is released when the
   * answer uses no memory here any more.
   */
  async answer(chunk: ChunkInput, rows: SlabRange, held: Reservation, signal: EndSignal): Promise<void> {
    const left = () => held.release();
    try {
      await this.channel.reserve(chunkCost(rows.byteLength, routingBytesOf(chunk)), signal);
      this.watchAnswers(false);
      if (this.sendsInPlace(chunk, rows)) {
        this.channel.send(chunk, { slab: rows.slab, bytes: rows.byteLength }, left);
      } else await abortable(this.channel.sendCopy(chunk, rows, left), signal);
    } catch (error) {
      left();
      throw error;
    }
  }

  /** `flush`: what was sent last may still leave; otherwise nothing is waited for. Idempotent. */
  close(reason: SwitchyardError, { flush } = { flush: false }): void {
    if (this.stalled !== null) clearTimeout(this.stalled);
    clearTimeout(this.lost);
    this.channel.close(reason, { flush });
    this.options.onClosed();
  }

  private changed(): void {
    const { failure } = this.channel;
    if (failure === null) this.watchAnswers(true);
    else if (failure.code !== 'LINK_LOST') this.options.onFailure(failure);
    else if (this.used) {
      this.lost ??= setTimeout(() => this.options.onFailure(channelLost(failure)), channelGraceMs);
    }
    this.options.onChange();
  }

  /** The client has stalled if it takes none of the answers that are outstanding for `stallMs`. */
  private watchAnswers(progress: boolean): void {
    const waiting = this.outstandingBytes > 0;
    if (this.stalled !== null && (progress || !waiting)) {
      clearTimeout(this.stalled);
      this.stalled = null;
    }
    const { stallMs, onFailure } = this.options;
    if (waiting) this.stalled ??= setTimeout(() => onFailure(takesNothing(stallMs)), stallMs);
  }
}

/** The error of a batch whose client does not take its answers. */
export function takesNothing(stallMs: number): SwitchyardError {
  const message = `the client has taken no answer for ${stallMs} ms; allowed: less, as clientStallMs has it`;
  return new SwitchyardError('CLIENT_STALLED', message, { stallMs });
}

/** The error of a batch, or a session, whose channel is gone. */
export function channelLost(reason: SwitchyardError): SwitchyardError {
  const text = `the UCX channel to the client was lost: ${reason.message}`;
  return new SwitchyardError('LINK_LOST', text, { transport: 'ucx' }, { cause: reason });
}
