import { native, type Slab, type SlabRange } from '../../native/index.js';
import { invalidArgument, type SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardSummaryInput } from '../common/generated/switchyard/v1/ForwardSummary.js';
import type { SessionBatch } from '../common/generated/switchyard/v1/SessionBatch.js';
import type { SessionResponseInput } from '../common/generated/switchyard/v1/SessionResponse.js';
import { toFailure } from '../common/status.js';
import { systemClock } from '../runtime/system.js';
import { routingBytesOf, sessionTokensMax, tokensWithin } from '../transport/chunk-size.js';
import { type ArrivedRows, type MessagePort, type Outgoing, slabOf } from '../transport/port.js';
import type { BatchCall, RowsWay } from './batch-call.js';
import { BatchEnd } from './batch-end.js';
import type { Reservation } from './budget.js';
import { type ClientMessage, dropClientRows } from './check-chunk.js';

/** The way that a batch came, by which it is answered. */
export interface SessionWay extends RowsWay {
  readonly port: MessagePort<SessionResponseInput>;
}

export interface SessionCallOptions {
  batch: SessionBatch;
  rows: ArrivedRows;
  way: SessionWay;
  peer: string;
  /** Of the session's call. */
  traceparent: string;
  /** Called when the rows need their room no longer. */
  taken: () => void;
  /** Called when what ends the batch for its client has left. */
  onAnswered: () => void;
}

/** An answer that waits for the next one, or for the summary. */
interface HeldAnswer {
  chunk: ChunkInput;
  rows: SlabRange;
  held: Reservation;
}

/** Of an answer: offset, number and lengths. */
const headBytes = 64;
/** Of a summary: names and numbers. */
const summaryBytesBase = 512;
/** Of a layer in a summary: its own number and lengths, and a count of rows for each expert, which is no more than the tokens. */
const layerBytesBase = 16;
const bytesPerExpert = 2;

/** A batch of a session: it came whole, in one message, and its last answer carries the summary. */
export class SessionCall implements BatchCall {
  readonly end = new BatchEnd(systemClock);
  /** When what ends it was sent, as performance.now(); Infinity: it was not. */
  answeredMs = Number.POSITIVE_INFINITY;
  private message: ClientMessage | null;
  /** Gives back the room that the message has among those of the session; null: that is done. */
  private taken: (() => void) | null;
  /** The answer that was made last. */
  private last: HeldAnswer | null = null;

  constructor(private readonly options: SessionCallOptions) {
    const { batch, rows, taken } = options;
    const { experts, weights, tokenIds } = batch;
    const chunk = { offset: 0, experts, weights, tokenIds, rows: batch.rows };
    this.taken = taken;
    this.message = { request: { kind: 'chunk', chunk }, rows, taken: () => this.giveRoomBack() };
  }

  get peer(): string {
    return this.options.peer;
  }

  get traceparent(): string {
    return this.options.traceparent;
  }

  get batchId(): string {
    return this.options.batch.header?.batchId ?? '';
  }

  /** One among many, unless its client has given it a name. */
  get loggedAt(): 'info' | 'debug' {
    return this.batchId === '' ? 'debug' : 'info';
  }

  async header(): Promise<ForwardHeader> {
    const { header } = this.options.batch;
    if (header === null) throw invalidArgument('batch.header', 'missing', 'the header of the batch');
    if (header.ucx !== null || header.ucxKey.byteLength > 0) {
      const field = header.ucx === null ? 'ucx_key' : 'ucx';
      throw invalidArgument(`header.${field}`, 'given', 'none in a session, whose hello may offer UCX');
    }
    if (header.deadlineMs > 0) this.end.limit(header.deadlineMs);
    const tokens = header.sequences * header.length;
    if (tokens > sessionTokensMax) {
      const allowed = `at most ${sessionTokensMax} tokens in a batch of a session; larger ones are calls of their own`;
      throw invalidArgument('sequences x length', tokens, allowed);
    }
    return header;
  }

  /** Its one message, and then the end. */
  async next(): Promise<ClientMessage | null> {
    this.end.signal.throwIfAborted();
    const { message } = this;
    this.message = null;
    return message;
  }

  idle(): void {}

  answerTokensMax(rowBytes: number, routingBytes: number): number {
    const { transport } = this.options.way;
    return transport === 'ucx'
      ? tokensWithin(rowBytes, routingBytes, Number.POSITIVE_INFINITY)
      : sessionTokensMax;
  }

  answersInPlace(): boolean {
    return false;
  }

  async answer(chunk: ChunkInput, rows: SlabRange, held: Reservation): Promise<void> {
    const earlier = this.last;
    this.last = { chunk, rows: { ...rows, slab: rows.slab.share() }, held };
    if (earlier !== null) await this.send(earlier, null);
  }

  async way(): Promise<RowsWay> {
    const { transport, lanes } = this.options.way;
    return { transport, lanes };
  }

  async complete(summary: ForwardSummaryInput): Promise<void> {
    const last = this.last!;
    this.last = null;
    await this.send(last, summary);
    this.end.clear();
  }

  fail(error: SwitchyardError): void {
    this.end.clear();
    this.end.abort(error);
    this.drop();
    this.answeredMs = performance.now();
    const failure = { number: this.options.batch.number, ...toFailure(error) };
    this.options.way.port.send({
      make: () => ({ failure }),
      rows: null,
      ...this.whenLeft(this.options.onAnswered),
    });
  }

  /** Gives up what nobody wants any more. */
  private drop(): void {
    if (this.message !== null) dropClientRows(this.message.rows);
    // Whoever worked on the message has ended, however far it came.
    this.giveRoomBack();
    this.last?.rows.slab.release();
    this.last?.held.release();
    this.message = null;
    this.last = null;
  }

  private giveRoomBack(): void {
    this.taken?.();
    this.taken = null;
  }

  private async send(answer: HeldAnswer, summary: ForwardSummaryInput | null): Promise<void> {
    const { batch, way, onAnswered } = this.options;
    const { chunk, held } = answer;
    let slab: Slab;
    try {
      slab = await this.inOneSlab(answer, summary);
    } catch (error) {
      held.release();
      throw error;
    }
    const fields = { number: batch.number, ...chunk, summary };
    if (summary !== null) this.answeredMs = performance.now();
    const { done, sent } = this.whenLeft(() => {
      held.release();
      if (summary !== null) onAnswered();
    });
    way.port.send({
      make: (rows) => ({ answer: { ...fields, ...(rows && { rows }) } }),
      rows: { slab, bytes: answer.rows.byteLength },
      done: () => {
        slab.release();
        done();
      },
      sent,
    });
  }

  /**
   * The rows alone from the start of a slab, which the given one becomes: gRPC copies them, and UCX needs room behind them for the rest of
   * the message. Rejects with what has ended the batch.
   */
  private async inOneSlab({ chunk, rows }: HeldAnswer, summary: ForwardSummaryInput | null): Promise<Slab> {
    const { slab, byteLength } = rows;
    let kept = false;
    try {
      this.end.signal.throwIfAborted();
      const besideBytes = headBytes + routingBytesOf(chunk) + summaryBytesMax(summary);
      kept =
        this.options.way.transport === 'grpc' ||
        (byteLength === slab.byteLength && byteLength + besideBytes <= slab.capacity);
      return kept ? slab : await slabOf(rows, native, besideBytes);
    } finally {
      if (!kept) slab.release();
    }
  }

  /** When a message uses no memory here any more: gRPC has a copy at once, and UCX tells. */
  private whenLeft(left: () => void): Pick<Outgoing<SessionResponseInput>, 'done' | 'sent'> {
    return this.options.way.transport === 'grpc' ? { done: left } : { done: () => {}, sent: left };
  }
}

function summaryBytesMax(summary: ForwardSummaryInput | null): number {
  if (summary === null) return 0;
  const layers = summary.layers ?? [];
  return layers.reduce(
    (bytes, { rows }) => bytes + layerBytesBase + (rows?.length ?? 0) * bytesPerExpert,
    summaryBytesBase,
  );
}
