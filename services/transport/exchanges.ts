import type { Slab } from '../../native/index.js';
import { asSwitchyardError, SwitchyardError, shownNumber } from '../common/errors.js';
import type { ExchangeFailure } from '../common/generated/switchyard/v1/ExchangeFailure.js';
import type { ResultMeta } from '../common/generated/switchyard/v1/ResultMeta.js';
import type { RouterMessageInput } from '../common/generated/switchyard/v1/RouterMessage.js';
import { abortError, Deferred, type EndSignal, onAbort } from '../common/lifecycle.js';
import { LiveMap } from '../common/live.js';
import type { Runtime } from '../runtime/runtime.js';
import { Credits } from './credits.js';
import { checkBatch, creditCost, metadataRoom, resultRowCount, rowsBytes } from './limits.js';
import type { LinkLimits, LinkStats, TokenBatch, TokenBatchMeta, TokenBatchResult } from './link.js';
import { fromWireFailure, toWireMeta } from './messages.js';
import { type ArrivedRows, dropRows, intoSlab, type MessagePort, type Outgoing } from './port.js';

/** A token batch that has got its credits. */
interface Exchange {
  readonly id: number;
  readonly meta: TokenBatchMeta;
  readonly rows: Slab;
  readonly cost: number;
  readonly outgoing: Outgoing<RouterMessageInput>;
  /** Where it was sent. */
  readonly port: MessagePort<RouterMessageInput>;
  readonly answer: Deferred<TokenBatchResult>;
  /** abandoned: nobody waits any more, but the answer is still to come and holds its credits until then. */
  state: 'waiting' | 'receiving' | 'abandoned';
}

/** The token batches of a link that wait for credits or for their answers, on the router's side. */
export class Exchanges {
  private readonly waiting = new LiveMap<number, Exchange>();
  private readonly counts = {
    bytesSent: 0,
    bytesReceived: 0,
    messagesSent: 0,
    messagesReceived: 0,
    answersDiscarded: 0,
  };
  private credits: Credits;
  private opened: LinkLimits = { rowBytesMax: 0, resultBytesMax: 0, creditBytes: 1 };
  private lastId = 0;
  private ended: SwitchyardError | null = null;

  /** `port`: where token batches go at the moment. */
  constructor(
    private readonly worker: string,
    private readonly port: () => MessagePort<RouterMessageInput>,
    private readonly runtime: Pick<Runtime, 'clock' | 'rows'>,
  ) {
    this.credits = this.creditsOf(this.opened);
  }

  get stats(): LinkStats {
    const { outstanding, capacity, waiting } = this.credits;
    return { ...this.counts, bytesOutstanding: outstanding, creditBytes: capacity, waiting };
  }

  get limits(): LinkLimits {
    return this.opened;
  }

  /** What both ends allow; before it nothing can be exchanged. */
  open(limits: LinkLimits): void {
    this.credits = this.creditsOf(limits);
    this.opened = limits;
  }

  /** As Link.exchange. */
  async exchange(batch: TokenBatch, signal: EndSignal): Promise<TokenBatchResult> {
    const { meta } = batch;
    let { rows, selected } = batch;
    const cost = creditCost(meta);
    let acquired = 0;
    try {
      checkBatch(this.worker, this.opened, meta);
      await this.credits.acquire(cost, signal);
      acquired = cost;
      if (selected && !this.port().gathers) {
        rows = await this.pack(batch, selected);
        selected = undefined;
      }
    } catch (error) {
      this.credits.release(acquired);
      rows.release();
      throw error;
    }
    // The link or the caller may have gone since the call.
    if (this.ended || signal.aborted) {
      this.credits.release(cost);
      rows.release();
      throw this.ended ?? abortError(signal);
    }
    const exchange = this.start({ meta, rows, ...(selected && { selected }) }, cost);
    const forget = onAbort(signal, () => this.abandon(exchange, abortError(signal)));
    try {
      return await exchange.answer.promise;
    } finally {
      forget();
    }
  }

  /** Ends the exchanges of a batch that have got their credits. Returns where the worker must hear of it. */
  cancel(batchId: string): Set<MessagePort<RouterMessageInput>> {
    const cancelled = new SwitchyardError('CANCELLED', `batch ${batchId} was cancelled`);
    const own = this.waiting.values().filter(({ meta }) => meta.batchId === batchId);
    for (const exchange of own) this.abandon(exchange, cancelled);
    return new Set(own.filter(({ id }) => this.waiting.has(id)).map(({ port }) => port));
  }

  /** Takes an answer. Rejects with what is wrong if it answers nothing that was sent. */
  async result(meta: ResultMeta, rows: ArrivedRows): Promise<void> {
    let exchange: Exchange | null = null;
    try {
      exchange = this.answered(meta.exchange);
    } finally {
      if (exchange === null) dropRows(rows);
    }
    if (exchange === null) return;
    let slab: Slab;
    try {
      const expected = resultRowCount(exchange.meta);
      const bytes = rowsBytes(expected, exchange.meta.hidden);
      if (meta.rows !== expected || rows.byteLength !== bytes)
        throw this.wrongShape(meta.rows, rows.byteLength, expected, bytes);
      this.counts.messagesReceived += 1;
      this.counts.bytesReceived += bytes;
      slab = await intoSlab(rows);
    } catch (error) {
      dropRows(rows);
      exchange.answer.reject(asSwitchyardError(error));
      this.forget(exchange);
      return;
    }
    if (exchange.state === 'abandoned' || !this.waiting.has(exchange.id)) {
      this.counts.answersDiscarded += 1;
      slab.release();
    } else {
      const { computeSeconds, queueSeconds } = meta;
      exchange.answer.resolve({ rows: slab, rowCount: meta.rows, computeSeconds, queueSeconds });
    }
    this.forget(exchange);
  }

  /** Takes the failure of a token batch. Throws as `result` rejects. */
  failure(failure: ExchangeFailure): void {
    const exchange = this.answered(failure.exchange);
    if (!exchange) return;
    exchange.answer.reject(fromWireFailure(failure, this.worker));
    this.forget(exchange);
  }

  /** Everything outstanding, and everything to come, rejects with `error`. */
  end(error: SwitchyardError): void {
    this.ended = error;
    this.credits.close(error);
    for (const exchange of this.waiting.values()) {
      exchange.rows.release();
      exchange.answer.reject(error);
      this.credits.release(exchange.cost);
    }
    this.waiting.clear();
  }

  /** The rows to send, side by side; releases those among which they were chosen. */
  private async pack({ meta, rows }: TokenBatch, indices: Uint32Array): Promise<Slab> {
    const { hidden } = meta;
    const packed = await this.runtime.rows.packRows({ rows, hidden, indices, tailBytes: metadataRoom(meta) });
    rows.release();
    return packed;
  }

  private creditsOf({ creditBytes }: LinkLimits): Credits {
    return new Credits(creditBytes, { setting: 'linkWindowBytes', node: `worker ${this.worker}` });
  }

  private start({ meta, rows, selected }: TokenBatch, cost: number): Exchange {
    const id = ++this.lastId;
    const bytes = rowsBytes(meta.rowCount, meta.hidden);
    const gather = selected && { rowBytes: rowsBytes(1, meta.hidden), selected };
    const outgoing: Outgoing<RouterMessageInput> = {
      make: (inMessage) => {
        this.counts.messagesSent += 1;
        this.counts.bytesSent += bytes;
        return {
          tokens: {
            meta: toWireMeta(id, meta, this.runtime.clock.now()),
            ...(inMessage && { rows: inMessage }),
          },
        };
      },
      rows: { slab: rows, bytes, ...(gather && { gather }) },
      done: () => rows.release(),
    };
    const port = this.port();
    const exchange = {
      id,
      meta,
      rows,
      cost,
      outgoing,
      port,
      answer: new Deferred<TokenBatchResult>(),
      state: 'waiting' as const,
    };
    this.waiting.set(id, exchange);
    port.send(outgoing);
    return exchange;
  }

  private abandon(exchange: Exchange, error: SwitchyardError): void {
    exchange.answer.reject(error);
    exchange.state = 'abandoned';
    if (this.waiting.has(exchange.id) && exchange.port.withdraw(exchange.outgoing)) this.forget(exchange);
  }

  private forget(exchange: Exchange): void {
    if (this.waiting.delete(exchange.id)) this.credits.release(exchange.cost);
  }

  /** The exchange that an answer is for; null if nobody waits for it any more. */
  private answered(id: number): Exchange | null {
    const exchange = this.waiting.get(id);
    if (exchange?.state === 'waiting') {
      exchange.state = 'receiving';
      return exchange;
    }
    if (!exchange && (id > this.lastId || id < 1)) {
      throw new SwitchyardError(
        'LINK_LOST',
        `the worker answered exchange ${shownNumber(id)}, which was never sent`,
      );
    }
    this.counts.answersDiscarded += 1;
    if (exchange?.state === 'abandoned') this.forget(exchange);
    return null;
  }

  private wrongShape(
    rows: number,
    bytes: number,
    rowsExpected: number,
    bytesExpected: number,
  ): SwitchyardError {
    const text = `worker ${this.worker} answered ${rows} rows in ${bytes} bytes; expected: ${rowsExpected} rows in ${bytesExpected}`;
    return new SwitchyardError('DATA_LOSS', text, { worker: this.worker, rows, bytes });
  }
}
