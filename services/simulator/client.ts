import type { SlabRange } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardSummaryInput } from '../common/generated/switchyard/v1/ForwardSummary.js';
import type { BatchCall, RowsWay } from '../router/batch-call.js';
import { BatchEnd } from '../router/batch-end.js';
import type { Reservation } from '../router/budget.js';
import type { ClientMessage } from '../router/check-chunk.js';
import type { Runtime } from '../runtime/runtime.js';
import { rowsOfMessage } from '../transport/port.js';
import { rowBytes, tokenRow } from './arithmetic.js';
import { type BatchWish, givenRouting, headerOf, type ModelShape } from './batch.js';

/** What a client hears of its batch. */
export interface BatchListener {
  answered(first: number, rows: Uint32Array, routing: { experts: Uint32Array; weights: Float32Array }): void;
  completed(summary: ForwardSummaryInput): void;
  failed(error: SwitchyardError): void;
}

/** How a client behaves. */
export interface ClientManner {
  /** Between two of its messages. */
  sendMs: () => number;
  /** Until it has taken an answer. */
  takeMs: () => number;
}

/** A batch of a simulated client, as a router sees it; times are those of the router's clock. */
export class SimulatedCall implements BatchCall {
  readonly loggedAt = 'debug';
  readonly traceparent = '';
  readonly batchId = '';
  readonly end: BatchEnd;
  private sent = 0;

  constructor(
    readonly peer: string,
    private readonly wish: BatchWish,
    private readonly shape: ModelShape,
    private readonly manner: ClientManner,
    private readonly runtime: Pick<Runtime, 'clock' | 'rows'>,
    private readonly listener: BatchListener,
  ) {
    this.end = new BatchEnd(runtime.clock);
  }

  /** The client gives it up, or is gone. */
  cancel(): void {
    this.end.abort(new SwitchyardError('CANCELLED', 'the client cancelled the batch'));
  }

  async header(): Promise<ForwardHeader> {
    if (this.wish.deadlineMs > 0) this.end.limit(this.wish.deadlineMs);
    return headerOf(this.wish);
  }

  async next(): Promise<ClientMessage | null> {
    await this.pause(this.manner.sendMs());
    this.end.signal.throwIfAborted();
    const { tokens, messageTokens } = this.wish;
    if (this.sent === tokens) return null;
    const count = Math.min(messageTokens, tokens - this.sent);
    const chunk = this.chunk(this.sent, count);
    this.sent += count;
    return {
      request: { kind: 'chunk', chunk },
      rows: rowsOfMessage(chunk.rows, this.runtime.rows),
      taken: () => {},
    };
  }

  idle(): void {}

  answerTokensMax(): number {
    return 16;
  }

  answersInPlace(): boolean {
    return false;
  }

  async answer(
    chunk: ChunkInput,
    { slab, byteOffset, byteLength }: SlabRange,
    held: Reservation,
  ): Promise<void> {
    const rows = new Uint32Array(slab.view().slice(byteOffset, byteOffset + byteLength).buffer);
    const routing = {
      experts: new Uint32Array(Uint8Array.from(chunk.experts as Buffer).buffer),
      weights: new Float32Array(Uint8Array.from(chunk.weights as Buffer).buffer),
    };
    try {
      await this.pause(this.manner.takeMs());
      this.end.signal.throwIfAborted();
      this.listener.answered(Number(chunk.offset), rows, routing);
    } finally {
      held.release();
    }
  }

  async way(): Promise<RowsWay> {
    return { transport: 'grpc', lanes: 'simulated' };
  }

  async complete(summary: ForwardSummaryInput): Promise<void> {
    this.end.signal.throwIfAborted();
    this.end.clear();
    this.listener.completed(summary);
  }

  fail(error: SwitchyardError): void {
    this.end.clear();
    this.end.abort(error);
    this.listener.failed(error);
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.runtime.clock.after(ms, resolve));
  }

  private chunk(first: number, count: number) {
    const { wish, shape } = this;
    const rows = new Uint32Array(count * 2);
    const [experts, weights]: [number[], number[]] = [[], []];
    for (let i = 0; i < count; i += 1) {
      const { a, b } = tokenRow(wish.number, first + i);
      rows.set([a, b], i * 2);
      if (!wish.given) continue;
      const routing = givenRouting(wish, first + i, shape);
      experts.push(...routing.experts);
      weights.push(...routing.weights);
    }
    return {
      offset: first,
      rows: Buffer.from(rows.buffer, 0, count * rowBytes),
      experts: Buffer.from(Uint32Array.from(experts).buffer),
      weights: Buffer.from(Float32Array.from(weights).buffer),
      tokenIds: Buffer.alloc(0),
    };
  }
}
