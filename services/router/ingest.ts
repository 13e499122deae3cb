import type { RoutingTable, Slab } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { MessageLimit } from '../common/grpc-channel.js';
import { Deferred, type EndSignal } from '../common/lifecycle.js';
import type { Runtime } from '../runtime/runtime.js';
import { cancelMayFollow } from './batch-end.js';
import type { BudgetShare, Reservation } from './budget.js';
import {
  type CheckedChunk,
  type ClientMessage,
  checkChunk,
  dropClientRows,
  tooFewTokens,
  tooManyTokens,
} from './check-chunk.js';
import { type BatchPlan, chunkBytes } from './plan.js';
import { createRoutingTable, type RoutingNames, sliceRouting, writeRouting } from './routing-table.js';

/** A run of consecutive tokens on its way through the layers. The receiver owns rows, given routing and reservation. */
export interface InputChunk {
  /** Counts the chunks of the batch. */
  index: number;
  /** In tokens, from the start of the batch. */
  offset: number;
  tokens: number;
  /** [tokens, hidden] BF16; a chunk that ended early has room behind. */
  rows: Slab;
  given: RoutingTable | null;
  /** [tokens]; null: the batch has none. */
  tokenIds: Uint32Array | null;
  reservation: Reservation;
}

/** The client's messages after the header; null: half-closed. Rejects if none comes for long while the batch is not `busy`, and says what is `missing`. */
export interface RequestSource {
  next(busy: () => boolean, missing: string): Promise<ClientMessage | null>;
  /** What its client calls given routing, where that is not in chunks. */
  readonly routingNames?: RoutingNames;
}

export interface IngestOptions {
  plan: BatchPlan;
  source: RequestSource;
  share: BudgetShare;
  messageLimit: MessageLimit;
  /** Whether chunks of the batch are still in the pipeline. */
  busy: () => boolean;
  signal: EndSignal;
  runtime: Runtime;
}

/**
 * A chunk that is not full goes on when the client pauses for so long and the pipeline has nothing else of the batch: a
 * client that wants answers before it sends more gets them, and a slow one does not hold memory. Outputs do not
 * depend on where chunks are cut.
 */
const pauseMs = 50;

/**
 * Cuts a client's messages, of whatever size, into chunks of the pipeline. Memory for a chunk is reserved when its
 * first message is here; until it is granted nothing more is read, so that the client feels it.
 */
export class Ingest {
  private message: CheckedChunk | null = null;
  /** Tokens of `message` that were taken. */
  private taken = 0;
  private received = 0;
  /** Whether messages had ids of tokens: all have them, or none; null: there was no message yet. */
  private hasIds: boolean | null = null;
  private chunkCount = 0;
  private reading: Promise<ClientMessage | null> | null = null;

  constructor(private readonly options: IngestOptions) {}

  /** The batch's chunks in order. Throws for the first message that is wrong, and for an early end. */
  async *chunks(): AsyncGenerator<InputChunk, void, void> {
    const { plan, share, signal } = this.options;
    try {
      while (this.received < plan.tokens || this.message !== null) {
        await this.fetch(null);
        const capacity = Math.min(plan.chunkTokens, plan.tokens - this.message!.offset - this.taken);
        const reservation = await share.reserve(chunkBytes(plan, capacity), signal);
        let chunk: InputChunk;
        try {
          chunk = this.fits(capacity)
            ? await this.adopt(reservation)
            : await this.fill(capacity, reservation);
        } catch (error) {
          reservation.release();
          throw error;
        }
        yield chunk;
      }
    } finally {
      this.drop();
    }
  }

  /** Checks that the client half-closes. Call it after the last chunk. */
  async expectEnd(): Promise<void> {
    const { plan, source, busy } = this.options;
    const missing = `half-close, as all ${plan.tokens} tokens came`;
    const message = await source.next(busy, missing);
    if (message === null) return;
    dropClientRows(message.rows);
    throw tooManyTokens(plan);
  }

  /** Whether the message came in a slab that is exactly the next chunk. */
  private fits(capacity: number): boolean {
    return this.message!.rows.kind === 'slab' && this.taken === 0 && this.message!.tokens === capacity;
  }

  /** Makes the message's slab the chunk's, without a copy. */
  private async adopt(reservation: Reservation): Promise<InputChunk> {
    const { plan, runtime } = this.options;
    const message = this.message!;
    const { offset, tokens, rows, tokenIds, taken } = message;
    if (rows.kind !== 'slab') throw new SwitchyardError('INTERNAL', 'rows without a slab were adopted');
    const given = plan.given ? createRoutingTable(runtime.rows, plan, tokens) : null;
    try {
      if (given !== null) await this.copyRouting(given, 0, tokens);
    } catch (error) {
      given?.release();
      throw error;
    }
    this.message = null;
    taken();
    return { index: this.chunkCount++, offset, tokens, rows: rows.slab, given, tokenIds, reservation };
  }

  /** Gives up what was read and is not part of a chunk. */
  private drop(): void {
    if (this.message !== null) dropClientRows(this.message.rows);
    this.reading?.then(
      (message) => message && dropClientRows(message.rows),
      () => {},
    );
  }

  /** Takes tokens until the chunk is full or the client pauses. Releases what it made if it throws. */
  private async fill(capacity: number, reservation: Reservation): Promise<InputChunk> {
    const { plan, runtime } = this.options;
    const offset = this.message!.offset + this.taken;
    const rows = runtime.rows.allocateSlab(capacity * plan.rowBytes);
    const ids = this.hasIds ? new Uint32Array(capacity) : null;
    let given: RoutingTable | null = null;
    let tokens = 0;
    try {
      if (plan.given) given = createRoutingTable(runtime.rows, plan, capacity);
      do {
        const count = Math.min(capacity - tokens, this.message!.tokens - this.taken);
        await this.copyRows(rows, tokens, count);
        if (given !== null) await this.copyRouting(given, tokens, count);
        ids?.set(this.message!.tokenIds!.subarray(this.taken, this.taken + count), tokens);
        tokens += count;
        this.taken += count;
        if (this.taken === this.message!.tokens) this.release();
      } while (tokens < capacity && (await this.fetch(pauseMs)));
    } catch (error) {
      rows.release();
      given?.release();
      throw error;
    }
    const tokenIds = ids?.subarray(0, tokens) ?? null;
    return { index: this.chunkCount++, offset, tokens, rows, given, tokenIds, reservation };
  }

  /** Makes `message` hold tokens to take. False if the client paused for `pause` milliseconds; null: waits. */
  private async fetch(pause: number | null): Promise<boolean> {
    if (this.message !== null) return true;
    const { plan, messageLimit } = this.options;
    let request = await this.read(pause);
    while (request === 'pause' && this.options.busy()) request = await this.read(pause);
    if (request === 'pause') return false;
    if (request === null) {
      await cancelMayFollow(this.options.runtime.clock, this.options.signal);
      throw tooFewTokens(this.received, plan);
    }
    try {
      this.message = checkChunk(request, this.received, plan, messageLimit, this.hasIds);
    } catch (error) {
      dropClientRows(request.rows);
      throw error;
    }
    this.hasIds = this.message.tokenIds !== null;
    this.taken = 0;
    this.received += this.message.tokens;
    return true;
  }

  /** The next message. One that is still awaited after a pause is what the next call returns. */
  private async read(pause: number | null): Promise<ClientMessage | null | 'pause'> {
    if (this.reading === null) {
      const { source, busy, plan } = this.options;
      const missing = `rows from token ${this.received} on, of the ${plan.tokens} that the header announced`;
      this.reading = source.next(busy, missing);
      // Nobody may be waiting when it fails; whoever waits next hears of it.
      this.reading.catch(() => {});
    }
    const request = pause === null ? await this.reading : await this.orPause(this.reading, pause);
    if (request !== 'pause') this.reading = null;
    return request;
  }

  private async orPause<T>(awaited: Promise<T>, pause: number): Promise<T | 'pause'> {
    const paused = new Deferred<'pause'>();
    const timer = this.options.runtime.clock.after(pause, () => paused.resolve('pause'));
    try {
      return await Promise.race([awaited, paused.promise]);
    } finally {
      timer.cancel();
    }
  }

  /** All tokens of the message are in chunks. */
  private release(): void {
    dropClientRows(this.message!.rows);
    this.message!.taken();
    this.message = null;
  }

  private copyRows(target: Slab, targetToken: number, count: number): Promise<void> {
    const { plan, runtime } = this.options;
    const { rows } = this.message!;
    const [byteOffset, byteLength, targetOffset] = [this.taken, count, targetToken].map(
      (tokens) => tokens * plan.rowBytes,
    ) as [number, number, number];
    if (rows.kind === 'stored') return rows.readInto(byteOffset, byteLength, target, targetOffset);
    const source =
      rows.kind === 'slab'
        ? { slab: rows.slab, byteOffset, byteLength }
        : rows.bytes.subarray(byteOffset, byteOffset + byteLength);
    return runtime.rows.copyIn(source, target, targetOffset);
  }

  private copyRouting(target: RoutingTable, targetToken: number, count: number): Promise<void> {
    const { plan, runtime, source: client } = this.options;
    const { given, offset } = this.message!;
    const source = sliceRouting(given!, plan, this.taken, count);
    return writeRouting(
      runtime.rows,
      target,
      targetToken,
      source,
      offset + this.taken,
      plan,
      client.routingNames,
    );
  }
}
