import { native, type Slab, type SlabRange } from '../../native/index.js';
import { asSwitchyardError, invalidArgument, SwitchyardError, shownNumber } from '../common/errors.js';
import type {
  ChannelMessage,
  ChannelMessageInput,
} from '../common/generated/switchyard/v1/ChannelMessage.js';
import type { Chunk, ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { UcxEnd, UcxEndInput } from '../common/generated/switchyard/v1/UcxEnd.js';
import { Deferred, type EndSignal } from '../common/lifecycle.js';
import { channelCodec } from '../common/protocol.js';
import { chunkCost, routingBytesOf } from './chunk-size.js';
import { Credits } from './credits.js';
import { type ArrivedRows, dropRows, type OutgoingRows, slabOf } from './port.js';
import { copiedOut, UcxPort } from './ucx/port.js';
import type { Fabric } from './ucx/source.js';

/** A chunk as it arrived. The receiver owns the slab, and gives `cost` back once it has taken the rows. */
export interface ArrivedChunk {
  /** Without its rows. */
  chunk: Chunk;
  slab: Slab;
  rowBytes: number;
  /** In bytes of credit. */
  cost: number;
}

export interface ChunkChannelOptions {
  /** The secret of the channel, 16 bytes. */
  key: Uint8Array;
  /** Bytes of chunks that the peer may have outstanding towards this end. */
  windowBytes: number;
  /** Whether those who send hear when messages have left. Default: no. */
  reportSends?: boolean;
  /** Called when chunks or credit have come, and when the channel has failed. */
  onChange: () => void;
}

/** Offset and lengths in a chunk's metadata take less. */
const chunkHeadBytes = 64;

/**
 * One end of the UCX channel that carries the chunks of a batch, the same for client and router. Rows stay in slabs. UCX
 * has no flow control, so each end may have only so many bytes outstanding as the other has given credit for: the first
 * credit is the whole window, and what has been taken is given back. A peer that breaks its credit or the
 * form of messages fails the channel.
 */
export class ChunkChannel {
  /** The first error that ended the channel, unless `close` did. */
  failure: SwitchyardError | null = null;
  private readonly port: UcxPort<ChannelMessageInput, ChannelMessage>;
  private readonly opening = new Deferred<void>();
  private readonly arrived: ArrivedChunk[] = [];
  private credits: Credits | null = null;
  /** What the peer may send now. */
  private allowedBytes = 0;
  private closed = false;

  /** Throws INVALID_ARGUMENT for a key of another length. */
  constructor(
    ucx: Fabric,
    private readonly options: ChunkChannelOptions,
  ) {
    const { key, windowBytes, reportSends = false } = options;
    this.port = new UcxPort(ucx, {
      codec: channelCodec,
      key,
      rowBytesMax: windowBytes,
      rowBytesInFlightMax: windowBytes,
      reportSends,
    });
    this.port
      .receive((message, rows, metadataBytes) => this.receive(message, rows, metadataBytes))
      .catch((error) => this.fail(asSwitchyardError(error)));
    this.opening.promise.catch(() => {});
  }

  /** What the peer must know to send here. */
  get end(): UcxEndInput {
    return this.port.end;
  }

  /** Resolves when the peer's first credit has come: the peer can be reached, and chunks can be sent. */
  get opened(): Promise<void> {
    return this.opening.promise;
  }

  /** Bytes of chunks that this end may have outstanding; 0 until the channel is open. */
  get peerWindowBytes(): number {
    return this.credits?.capacity ?? 0;
  }

  /** Bytes of chunks sent that the peer has not taken. */
  get outstandingBytes(): number {
    return this.credits?.outstanding ?? 0;
  }

  /** Rejects with LINK_LOST if UCX sees at once that the peer cannot be reached. */
  connect(end: UcxEnd): Promise<void> {
    return this.port.connect(end);
  }

  /** Gives the peer its first credit, the window. Call it once, after `connect`. */
  grant(): void {
    this.allowedBytes = this.options.windowBytes;
    this.sendCredit(this.options.windowBytes);
  }

  /** The transports that UCX uses towards the peer, for example "mapped posix". */
  lanes(): Promise<string> {
    return this.port.transports();
  }

  /**
   * Waits for credit for a chunk, in the order of the calls. Rejects with the signal's reason, with TOO_LARGE for more
   * than the peer's window, and with what ended the channel.
   */
  reserve(cost: number, signal: EndSignal): Promise<void> {
    if (this.credits === null) throw new SwitchyardError('INTERNAL', 'the channel is not open');
    return this.credits.acquire(cost, signal);
  }

  /**
   * Sends a chunk whose credit is reserved. The slab must have room for the chunk's metadata behind the rows; its memory may
   * not be written to any more. The caller releases it, at once if it likes. `left` is called once, when the message uses
   * no memory any more, by a channel that tells.
   */
  send(chunk: ChunkInput, rows: OutgoingRows, left?: () => void): void {
    this.port.send({ make: () => ({ chunk }), rows, done: () => {}, sent: left });
  }

  /** As `send`, of rows that are copied once, off the JS thread. Resolves when they are copied. */
  async sendCopy(chunk: ChunkInput, rows: Uint8Array | SlabRange, left?: () => void): Promise<void> {
    const slab = await slabOf(rows, native, chunkHeadBytes + routingBytesOf(chunk));
    try {
      this.send(chunk, { slab, bytes: rows.byteLength }, left);
    } finally {
      slab.release();
    }
  }

  /** The next chunk that has arrived; null: none has. */
  take(): ArrivedChunk | null {
    return this.arrived.shift() ?? null;
  }

  /** Lets the peer send as much as a chunk cost that has been taken. */
  giveBack(cost: number): void {
    if (this.closed) return;
    this.allowedBytes += cost;
    this.sendCredit(cost);
  }

  /** The rows of a chunk, which are `use`'s until its promise settles and empty afterwards. Then slab and credit go back. */
  async lend({ slab, cost }: ArrivedChunk, use: (rows: Uint8Array) => Promise<void>): Promise<void> {
    const rows = slab.view();
    try {
      await use(rows);
    } finally {
      native.endView(rows);
      slab.release();
    }
    this.giveBack(cost);
  }

  /** A chunk's rows in memory of their own, by one copy off the JS thread; slab and credit are given back. */
  async copyOut({ slab, rowBytes, cost }: ArrivedChunk): Promise<Buffer> {
    const rows = await copiedOut(slab, rowBytes);
    this.giveBack(cost);
    return rows;
  }

  /**
   * Ends the channel: what waits for credit rejects with `reason`, chunks that nobody took are dropped. `flush`: what was sent
   * may still leave; otherwise it is given up. Idempotent.
   */
  close(reason: SwitchyardError, { flush } = { flush: false }): void {
    if (this.closed) return;
    this.closed = true;
    this.opening.reject(reason);
    this.credits?.close(reason);
    for (const { slab } of this.arrived.splice(0)) slab.release();
    this.port.close(reason, { flush });
  }

  private fail(error: SwitchyardError): void {
    if (this.closed) return;
    this.failure = error;
    this.close(error);
    this.options.onChange();
  }

  private sendCredit(bytes: number): void {
    this.port.send({ make: () => ({ credit: { bytes } }), rows: null, done: () => {} });
  }

  private receive(message: ChannelMessage, rows: ArrivedRows, metadataBytes: number): void {
    try {
      if (message.chunk) this.receiveChunk(message.chunk, rows, metadataBytes);
      else if (message.credit) this.receiveCredit(message.credit.bytes, rows);
      else throw invalidArgument('kind of a channel message', 'none', 'chunk, credit');
    } catch (error) {
      dropRows(rows);
      this.fail(asSwitchyardError(error));
      return;
    }
    this.options.onChange();
  }

  private receiveChunk(chunk: Chunk, rows: ArrivedRows, metadataBytes: number): void {
    const routingBytes = routingBytesOf(chunk);
    if (metadataBytes > chunkHeadBytes + routingBytes || chunk.rows.byteLength > 0) {
      const allowed = `offset and routing: ${chunkHeadBytes + routingBytes} at most; rows lie beside it`;
      throw invalidArgument(
        `metadata of the chunk at offset ${shownNumber(chunk.offset)}`,
        `${metadataBytes} bytes`,
        allowed,
      );
    }
    if (rows.kind !== 'slab') throw new SwitchyardError('INTERNAL', 'rows came over UCX without a slab');
    const cost = chunkCost(rows.byteLength, routingBytes);
    if (cost > this.allowedBytes) {
      const text = `a chunk that costs ${cost} bytes came over UCX; allowed: ${this.allowedBytes}, the credit that is left`;
      const details = { field: 'chunk', value: cost, allowed: this.allowedBytes };
      throw new SwitchyardError('RESOURCE_EXHAUSTED', text, details);
    }
    this.allowedBytes -= cost;
    this.arrived.push({ chunk, slab: rows.slab, rowBytes: rows.byteLength, cost });
  }

  private receiveCredit(bytes: number, rows: ArrivedRows): void {
    dropRows(rows);
    const max = this.credits?.outstanding ?? Number.MAX_SAFE_INTEGER;
    if (!Number.isSafeInteger(bytes) || bytes < 1 || bytes > max) {
      const what = this.credits === null ? 'a whole number from 1' : `1 to ${max}, the bytes outstanding`;
      throw invalidArgument('credit.bytes', bytes, what);
    }
    if (this.credits === null) {
      this.credits = new Credits(bytes, {
        setting: 'the first credit',
        node: 'the other end of the channel',
      });
      this.opening.resolve();
    } else this.credits.release(bytes);
  }
}
