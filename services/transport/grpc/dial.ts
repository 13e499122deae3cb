import { setMaxListeners } from 'node:events';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import { native, type Slab } from '../../../native/index.js';
import { asSwitchyardError, SwitchyardError } from '../../common/errors.js';
import type { ExpertsClient } from '../../common/generated/switchyard/v1/Experts.js';
import type { ResultBatch } from '../../common/generated/switchyard/v1/ResultBatch.js';
import type { RouterMessageInput } from '../../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessage } from '../../common/generated/switchyard/v1/WorkerMessage.js';
import { connect } from '../../common/grpc-channel.js';
import { abortError, Deferred } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { clients } from '../../common/protocol.js';
import { fromServiceError } from '../../common/status.js';
import { Credits } from '../credits.js';
import type { Link, LinkStats, TokenBatch, TokenBatchMeta, TokenBatchResult } from '../link.js';
import { creditCost, fromWireFailure, resultRowCount, rowsBytes, tooLarge, toWireMeta } from './messages.js';
import { MessageWriter, type Outgoing } from './writer.js';

export interface GrpcLinkOptions {
  /** host:port of the worker's gRPC server. */
  address: string;
  /** This router's name. */
  router: string;
  /** The name that the worker must have. */
  worker: string;
  modelFingerprint: string;
  epoch: number;
  token: string | null;
  messageBytesMax: number;
  log: Logger;
}

type LinkCall = ClientDuplexStream<RouterMessageInput, WorkerMessage>;

/** A token batch that has got its credits. */
interface Exchange {
  readonly id: number;
  readonly meta: TokenBatchMeta;
  readonly rows: Slab;
  readonly cost: number;
  readonly outgoing: Outgoing<RouterMessageInput>;
  readonly answer: Deferred<TokenBatchResult>;
  /** abandoned: nobody waits any more, but the answer is still to come and holds its credits until then. */
  state: 'waiting' | 'receiving' | 'abandoned';
}

const welcomeMsMax = 5_000;

/**
 * Connects to a worker. Rejects with what the worker refuses the link with (MODEL_MISMATCH, NOT_READY), and with
 * LINK_LOST when it cannot be reached, does not answer in time, or is another worker.
 */
export async function dialGrpcLink(options: GrpcLinkOptions): Promise<Link> {
  const client = connect(clients.Experts, options.address, options);
  const call = client.Exchange();
  const link = new GrpcLink(options, client, call);
  const timer = setTimeout(() => {
    link.lose(
      new SwitchyardError('LINK_LOST', `no welcome from ${options.address} within ${welcomeMsMax} ms`),
    );
  }, welcomeMsMax);
  try {
    await link.opened;
    return link;
  } finally {
    clearTimeout(timer);
  }
}

class GrpcLink implements Link {
  readonly worker: string;
  readonly transport = 'grpc';
  private readonly open = new Deferred<void>();
  private readonly gone = new Deferred<Error>();
  private readonly writer: MessageWriter<RouterMessageInput>;
  private readonly exchanges = new Map<number, Exchange>();
  private readonly counts = {
    bytesSent: 0,
    bytesReceived: 0,
    messagesSent: 0,
    messagesReceived: 0,
    answersDiscarded: 0,
  };
  private credits = new Credits(1);
  private rowsBytesMax = 0;
  private lastId = 0;
  private welcomed = false;
  private lost: SwitchyardError | null = null;

  constructor(
    private readonly options: GrpcLinkOptions,
    private readonly client: ExpertsClient,
    private readonly call: LinkCall,
  ) {
    this.worker = options.worker;
    this.writer = new MessageWriter(call);
    call.on('data', (message: WorkerMessage) => this.receive(message));
    call.on('error', (error) => this.lose(fromServiceError(error)));
    call.on('end', () => this.lose(new SwitchyardError('LINK_LOST', 'the worker ended the link')));
    const { router, modelFingerprint, epoch } = options;
    this.writer.send({ make: () => ({ hello: { router, modelFingerprint, epoch } }), done: () => {} });
  }

  /** Resolves with the worker's welcome. */
  get opened(): Promise<void> {
    return this.open.promise;
  }

  get closed(): Promise<Error> {
    return this.gone.promise;
  }

  get stats(): LinkStats {
    const { outstanding, capacity } = this.credits;
    return { ...this.counts, bytesOutstanding: outstanding, creditBytes: capacity };
  }

  async exchange(batch: TokenBatch, signal: AbortSignal): Promise<TokenBatchResult> {
    const { meta, rows } = batch;
    const cost = creditCost(meta);
    // All token batches of a batch share one signal; many listeners on it are no leak.
    setMaxListeners(0, signal);
    try {
      const bytes = rowsBytes(meta.rowCount, meta.hidden);
      if (bytes > this.rowsBytesMax) throw tooLarge(bytes, this.rowsBytesMax);
      await this.credits.acquire(cost, signal);
    } catch (error) {
      rows.release();
      throw error;
    }
    // The link or the caller may have gone between the grant and this line.
    if (this.lost || signal.aborted) {
      this.credits.release(cost);
      rows.release();
      throw this.lost ? this.lossOf(this.lost) : abortError(signal);
    }
    const exchange = this.start(meta, rows, cost);
    const onAbort = () => this.abandon(exchange, abortError(signal));
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      return await exchange.answer.promise;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  cancel(batchId: string): void {
    let sent = false;
    for (const exchange of this.exchanges.values()) {
      if (exchange.meta.batchId !== batchId) continue;
      if (!this.writer.withdraw(exchange.outgoing)) sent = true;
      exchange.answer.reject(new SwitchyardError('CANCELLED', `batch ${batchId} was cancelled`));
      this.forget(exchange);
    }
    if (sent && !this.lost) this.writer.send({ make: () => ({ cancel: { batchId } }), done: () => {} });
  }

  close(): void {
    this.lose(new SwitchyardError('LINK_LOST', 'the router closed the link'));
  }

  /** Ends the link: everything outstanding rejects with LINK_LOST at once. Only the first reason counts. */
  lose(reason: SwitchyardError): void {
    if (this.lost) return;
    this.lost = reason;
    this.open.reject(reason);
    const error = this.lossOf(reason);
    this.credits.close(error);
    this.writer.destroy();
    for (const exchange of this.exchanges.values()) {
      exchange.rows.release();
      exchange.answer.reject(error);
      this.credits.release(exchange.cost);
    }
    this.exchanges.clear();
    this.call.cancel();
    this.client.close();
    this.gone.resolve(reason);
  }

  private lossOf(reason: SwitchyardError): SwitchyardError {
    const { worker } = this;
    return new SwitchyardError(
      'LINK_LOST',
      `link to worker ${worker} lost: ${reason.message}`,
      { worker },
      { cause: reason },
    );
  }

  private start(meta: TokenBatchMeta, rows: Slab, cost: number): Exchange {
    const id = ++this.lastId;
    const bytes = rowsBytes(meta.rowCount, meta.hidden);
    const outgoing = {
      make: () => {
        this.counts.messagesSent += 1;
        this.counts.bytesSent += bytes;
        return { tokens: { meta: toWireMeta(id, meta), rows: rows.view().subarray(0, bytes) } };
      },
      done: () => rows.release(),
    };
    const exchange = {
      id,
      meta,
      rows,
      cost,
      outgoing,
      answer: new Deferred<TokenBatchResult>(),
      state: 'waiting' as const,
    };
    this.exchanges.set(id, exchange);
    this.writer.send(outgoing);
    return exchange;
  }

  private abandon(exchange: Exchange, error: SwitchyardError): void {
    exchange.answer.reject(error);
    exchange.state = 'abandoned';
    if (this.exchanges.has(exchange.id) && this.writer.withdraw(exchange.outgoing)) this.forget(exchange);
  }

  private forget(exchange: Exchange): void {
    if (this.exchanges.delete(exchange.id)) this.credits.release(exchange.cost);
  }

  private receive(message: WorkerMessage): void {
    if (this.lost) return;
    if (message.welcome) this.welcome(message.welcome);
    else if (!this.welcomed) this.lose(violation('the first message of the worker is not a welcome'));
    else if (message.result) void this.receiveResult(message.result);
    else if (message.failure) {
      const { failure } = message;
      const exchange = this.answered(failure.exchange);
      if (!exchange) return;
      exchange.answer.reject(fromWireFailure(failure, this.worker));
      this.forget(exchange);
    }
  }

  private welcome({ worker, creditBytes, messageBytesMax }: NonNullable<WorkerMessage['welcome']>): void {
    if (this.welcomed || worker !== this.worker) {
      const fault = this.welcomed ? 'a second welcome' : `a welcome of worker ${worker}`;
      this.lose(violation(`${this.options.address}, worker ${this.worker}, sent ${fault}`));
      return;
    }
    try {
      this.credits = new Credits(creditBytes);
    } catch (error) {
      this.lose(asSwitchyardError(error));
      return;
    }
    this.rowsBytesMax = Math.min(messageBytesMax, this.options.messageBytesMax);
    this.welcomed = true;
    this.open.resolve();
  }

  /** The exchange that an answer is for; null if nobody waits for it any more. */
  private answered(id: number): Exchange | null {
    const exchange = this.exchanges.get(id);
    if (exchange?.state === 'waiting') {
      exchange.state = 'receiving';
      return exchange;
    }
    if (!exchange && (id > this.lastId || id < 1)) {
      this.lose(violation(`the worker answered exchange ${id}, which was never sent`));
      return null;
    }
    this.counts.answersDiscarded += 1;
    if (exchange?.state === 'abandoned') this.forget(exchange);
    return null;
  }

  private async receiveResult({ meta, rows }: ResultBatch): Promise<void> {
    const exchange = meta && this.answered(meta.exchange);
    if (!exchange) return;
    let slab: Slab | null = null;
    try {
      const expected = resultRowCount(exchange.meta);
      const bytes = rowsBytes(expected, exchange.meta.hidden);
      if (meta.rows !== expected || rows.byteLength !== bytes)
        throw this.wrongShape(meta.rows, rows.byteLength, expected, bytes);
      this.counts.messagesReceived += 1;
      this.counts.bytesReceived += bytes;
      slab = native.allocateSlab(bytes);
      await native.ingestRows(rows, slab, 0, exchange.meta.hidden);
    } catch (error) {
      slab?.release();
      exchange.answer.reject(asSwitchyardError(error));
      this.forget(exchange);
      return;
    }
    if (exchange.state === 'abandoned' || !this.exchanges.has(exchange.id)) {
      this.counts.answersDiscarded += 1;
      slab.release();
    } else {
      const { computeSeconds, queueSeconds } = meta;
      exchange.answer.resolve({ rows: slab, rowCount: meta.rows, computeSeconds, queueSeconds });
    }
    this.forget(exchange);
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

function violation(message: string): SwitchyardError {
  return new SwitchyardError('LINK_LOST', message);
}
