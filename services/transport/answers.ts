import { invalidArgument, overLimit, SwitchyardError } from '../common/errors.js';
import type { BatchMeta } from '../common/generated/switchyard/v1/BatchMeta.js';
import type { WorkerMessageInput } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { Deferred } from '../common/lifecycle.js';
import { LiveMap } from '../common/live.js';
import { nowMicroseconds, type Trace } from '../common/trace.js';
import type { Clock } from '../runtime/clock.js';
import { creditCost, metadataRoom, resultRowCount, rowsBytes, tooManyResults } from './limits.js';
import type { TokenBatchHandler, TokenBatchMeta, TokenBatchResult } from './link.js';
import { fromWireMeta, toWireFailure } from './messages.js';
import { type ArrivedRows, dropRows, intoSlab, type MessagePort, type Outgoing } from './port.js';

export interface AnswersOptions {
  worker: string;
  router: string;
  hidden: number;
  /** Bytes of rows of one token batch. */
  messageBytesMax: number;
  /** Bytes of rows of one answer that the router takes. */
  resultBytesMax: number;
  /** Bytes of credit that the router may have outstanding. */
  windowBytes: number;
  handler: TokenBatchHandler;
  onCancel: (batchId: string, router: string) => void;
  trace: Trace | null;
  clock: Clock;
  /** Called when an answer was given to a port. */
  onSent: () => void;
}

/** A way on which token batches come, and their answers go. */
export interface AnswerWay {
  readonly port: MessagePort<WorkerMessageInput>;
  /** The last token batch that came here; 0: none did. */
  lastExchange: number;
}

/** A token batch between its arrival and its answer. */
interface Pending {
  readonly id: number;
  readonly port: MessagePort<WorkerMessageInput>;
  readonly batchId: string;
  readonly cost: number;
  /** Nobody wants its result any more. */
  dropped: boolean;
  /** The answer, once it waits to be sent. */
  outgoing: Outgoing<WorkerMessageInput> | null;
}

/**
 * The token batches of a link between their arrival and their answers, on the worker's side. Each gets one answer, and not
 * before its memory is free or on its way to the router: so the credit of a link bounds what the worker holds for it.
 */
export class Answers {
  private readonly pending = new LiveMap<number, Pending>();
  private readonly drained = new Deferred<void>();
  private outstandingBytes = 0;
  private ended = false;

  constructor(private readonly options: AnswersOptions) {}

  /** Token batches that are not answered yet. */
  get waiting(): number {
    return this.pending.size;
  }

  /**
   * Takes a token batch. `metadataBytes`: what its metadata took of a slab, where it came in one. Throws what ends the link;
   * what concerns the token batch alone is answered as its failure.
   */
  receive(meta: BatchMeta | null, rows: ArrivedRows, metadataBytes: number, way: AnswerWay): void {
    if (!meta) throw invalidArgument('meta', 'missing', 'the metadata of the token batch');
    const { exchange } = meta;
    const { port, lastExchange } = way;
    if (!Number.isSafeInteger(exchange) || exchange <= lastExchange) {
      throw invalidArgument('exchange', exchange, `above ${lastExchange}, the last one, and below 2^53`);
    }
    if (this.pending.has(exchange))
      throw invalidArgument('exchange', exchange, 'one that has not come on the other way');
    way.lastExchange = exchange;
    let checked: TokenBatchMeta;
    try {
      checked = this.check(meta, rows.byteLength, metadataBytes);
    } catch (error) {
      dropRows(rows);
      this.sendFailure(port, exchange, error);
      return;
    }
    const { trace, router } = this.options;
    if (rows.transfer)
      trace?.beside(`receive from ${router}`, 'receive', rows.transfer, traced(checked, rows.byteLength));
    const { batchId } = checked;
    const cost = creditCost(checked);
    const pending = { id: exchange, port, batchId, cost, dropped: false, outgoing: null };
    this.takeCredit(pending);
    void this.answer(pending, checked, rows);
  }

  /** Drops what is queued or computed of a batch; its token batches are answered by failures. */
  cancel(batchId: string): void {
    const { onCancel, router } = this.options;
    let working = false;
    for (const pending of this.pending.values()) {
      if (pending.batchId !== batchId) continue;
      pending.dropped = true;
      if (pending.outgoing === null) working = true;
      else if (pending.port.withdraw(pending.outgoing))
        this.sendFailure(pending.port, pending.id, cancelled(batchId));
    }
    if (working) onCancel(batchId, router);
  }

  /** Drops everything. Resolves when no memory is held any more. Call it once, when nothing can be sent. */
  end(): Promise<void> {
    this.ended = true;
    const batches = new Set(this.pending.values().map(({ batchId }) => batchId));
    for (const pending of this.pending.values()) pending.dropped = true;
    for (const batchId of batches) this.options.onCancel(batchId, this.options.router);
    if (this.pending.size === 0) this.drained.resolve();
    return this.drained.promise;
  }

  private check(meta: BatchMeta, bytes: number, metadataBytes: number): TokenBatchMeta {
    const { worker, router, hidden, messageBytesMax, resultBytesMax, clock } = this.options;
    const checked = fromWireMeta(meta, bytes, { worker, hidden, messageBytesMax }, clock.now());
    const metadataMax = metadataRoom(checked);
    if (metadataBytes > metadataMax) {
      const allowed = `${metadataMax} for ${checked.rowIndices.length} row indices`;
      throw invalidArgument('bytes of metadata', metadataBytes, allowed);
    }
    const resultBytes = rowsBytes(resultRowCount(checked), hidden);
    if (resultBytes > resultBytesMax) throw tooManyResults(resultBytes, resultBytesMax, `router ${router}`);
    return checked;
  }

  private takeCredit(pending: Pending): void {
    const { windowBytes, worker } = this.options;
    const bytes = this.outstandingBytes + pending.cost;
    if (bytes > windowBytes) {
      const by = { setting: 'linkWindowBytes', node: `worker ${worker}` };
      throw overLimit('RESOURCE_EXHAUSTED', 'bytes of credit outstanding', bytes, windowBytes, by);
    }
    this.outstandingBytes = bytes;
    this.pending.set(pending.id, pending);
  }

  private async answer(pending: Pending, meta: TokenBatchMeta, arrived: ArrivedRows): Promise<void> {
    try {
      const result = await this.handle(pending, meta, arrived);
      this.sendResult(pending, meta, result);
    } catch (error) {
      this.settle(pending);
      this.sendFailure(pending.port, pending.id, error);
    }
  }

  private async handle(
    pending: Pending,
    meta: TokenBatchMeta,
    arrived: ArrivedRows,
  ): Promise<TokenBatchResult> {
    const rows = await intoSlab(arrived);
    if (pending.dropped) {
      rows.release();
      throw cancelled(pending.batchId);
    }
    // The handler owns the rows from here on.
    const result = await this.options.handler({ meta, rows }, this.options.router);
    const { rowCount } = result;
    const expected = resultRowCount(meta);
    const whole = rowCount === expected && result.rows.byteLength >= rowsBytes(rowCount, meta.hidden);
    if (whole && !pending.dropped) return result;
    result.rows.release();
    if (pending.dropped) throw cancelled(pending.batchId);
    throw new SwitchyardError(
      'INTERNAL',
      `the worker made ${rowCount} rows of an answer; expected: ${expected}`,
    );
  }

  private sendResult(pending: Pending, meta: TokenBatchMeta, result: TokenBatchResult): void {
    const { rows, rowCount, computeSeconds, queueSeconds } = result;
    const bytes = rowsBytes(rowCount, meta.hidden);
    let started = 0;
    pending.outgoing = {
      make: (inMessage) => {
        started = nowMicroseconds();
        // From here on the router may take the credit as given back.
        this.settle(pending);
        const answer = { exchange: pending.id, rows: rowCount, computeSeconds, queueSeconds };
        return { result: { meta: answer, ...(inMessage && { rows: inMessage }) } };
      },
      rows: { slab: rows, bytes },
      done: () => {
        rows.release();
        this.settle(pending);
      },
      sent: (end) => {
        const { trace, router } = this.options;
        trace?.beside(`send to ${router}`, 'send', { start: started, end }, traced(meta, bytes));
      },
    };
    this.send(pending.port, pending.outgoing);
  }

  private sendFailure(port: Pending['port'], exchange: number, error: unknown): void {
    const failure = toWireFailure(exchange, error);
    this.send(port, { make: () => ({ failure }), rows: null, done: () => {} });
  }

  private send(port: Pending['port'], outgoing: Outgoing<WorkerMessageInput>): void {
    port.send(outgoing);
    this.options.onSent();
  }

  private settle(pending: Pending): void {
    if (!this.pending.delete(pending.id)) return;
    this.outstandingBytes -= pending.cost;
    if (this.ended && this.pending.size === 0) this.drained.resolve();
  }
}

function cancelled(batchId: string): SwitchyardError {
  return new SwitchyardError('CANCELLED', `batch ${batchId} was cancelled`);
}

function traced({ batchId, chunk, layer, rowCount }: TokenBatchMeta, bytes: number) {
  return { batch: batchId, chunk, layer, rows: rowCount, bytes };
}
