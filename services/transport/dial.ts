import { setMaxListeners } from 'node:events';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import type { Slab } from '../../native/index.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ExpertsClient } from '../common/generated/switchyard/v1/Experts.js';
import type { LinkHelloInput } from '../common/generated/switchyard/v1/LinkHello.js';
import type { LinkWelcome } from '../common/generated/switchyard/v1/LinkWelcome.js';
import type { ResultMeta } from '../common/generated/switchyard/v1/ResultMeta.js';
import type { RouterMessageInput } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessage } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { connect } from '../common/grpc-channel.js';
import { abortError, Deferred } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import { clients, exchangeCodec } from '../common/protocol.js';
import { fromServiceError } from '../common/status.js';
import { Credits } from './credits.js';
import { MessageWriter } from './grpc/writer.js';
import type {
  Link,
  LinkStats,
  TokenBatch,
  TokenBatchMeta,
  TokenBatchResult,
  TransportChoice,
  TransportKind,
} from './link.js';
import { creditCost, fromWireFailure, resultRowCount, rowsBytes, tooLarge, toWireMeta } from './messages.js';
import {
  type ArrivedRows,
  dropRows,
  intoSlab,
  type MessagePort,
  type Outgoing,
  rowsOfMessage,
} from './port.js';
import { isUcxUnreachable, randomKey, UcxPort, ucxLoss, ucxOrNull, whyNoUcx } from './ucx/port.js';

export interface LinkOptions {
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
  /** A worker silent for so long is lost. Default: half a minute. */
  leaseMs?: number;
  transport: TransportChoice;
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
/** Of rows under way from the worker: more credit than any worker gives. */
const rowBytesInFlightMax = 4 * 1024 ** 3;

/**
 * Connects to a worker, over UCX where the choice allows it and both ends reach each other by it. Rejects with what the worker refuses the link with (MODEL_MISMATCH, NOT_READY), and with
 * LINK_LOST when it cannot be reached, does not answer in time, or is another worker.
 */
export async function dialLink(options: LinkOptions): Promise<Link> {
  try {
    return await dialOnce(options);
  } catch (thrown) {
    const error = asSwitchyardError(thrown);
    if (options.transport !== 'auto' || !isUcxUnreachable(error)) throw error;
    const { worker, log } = options;
    log.warn({ event: 'ucx-unreachable', worker, reason: error.message, transport: 'grpc' });
    return dialOnce({ ...options, transport: 'grpc' }, error.message);
  }
}

/** `noUcx`: why UCX is not to be tried, if that is not what the options say. */
async function dialOnce(options: LinkOptions, noUcx?: string): Promise<Link> {
  const client = connect(clients.Experts, options.address, options);
  const link = new RouterLink(options, client, client.Exchange(), noUcx);
  const timer = setTimeout(() => link.giveUpOpening(welcomeMsMax), welcomeMsMax);
  try {
    await link.opened;
    return link;
  } finally {
    clearTimeout(timer);
  }
}

class RouterLink implements Link {
  readonly worker: string;
  transport: TransportKind = 'grpc';
  lanes = 'http2';
  reason: string;
  private readonly open = new Deferred<void>();
  private readonly gone = new Deferred<Error>();
  private port: MessagePort<RouterMessageInput>;
  private readonly ucx: UcxPort<RouterMessageInput, WorkerMessage> | null;
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
    private readonly options: LinkOptions,
    private readonly client: ExpertsClient,
    private readonly call: LinkCall,
    noUcx = whyNoUcx(options.transport, 'the router'),
  ) {
    this.worker = options.worker;
    this.reason = noUcx;
    this.port = new MessageWriter(call);
    call.on('data', (message: WorkerMessage) => this.receive(message, rowsIn(message)));
    call.on('error', (error) => this.lose(fromServiceError(error)));
    call.on('end', () => this.lose(new SwitchyardError('LINK_LOST', 'the worker ended the link')));
    const key = randomKey();
    try {
      this.ucx = this.openUcx(key);
    } catch (error) {
      this.ucx = null;
      this.lose(ucxLoss(asSwitchyardError(error).message));
      return;
    }
    this.sendHello(this.ucx && { ucx: this.ucx.end, ucxKey: Buffer.from(key) });
  }

  private openUcx(key: Uint8Array): UcxPort<RouterMessageInput, WorkerMessage> | null {
    const ucx = this.options.transport === 'grpc' ? null : ucxOrNull();
    if (ucx === null) return null;
    const rowBytesMax = this.options.messageBytesMax;
    const port = new UcxPort(ucx, { codec: exchangeCodec.router, key, rowBytesMax, rowBytesInFlightMax });
    port
      .receive((message, rows) => this.receive(message, rows))
      .catch((error) => this.lose(ucxLoss(asSwitchyardError(error).message)));
    return port;
  }

  private sendHello(offer: Pick<LinkHelloInput, 'ucx' | 'ucxKey'> | null): void {
    const { router, modelFingerprint, epoch } = this.options;
    const hello = { router, modelFingerprint, epoch, ...offer };
    this.port.send({ make: () => ({ hello }), rows: null, done: () => {} });
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
      if (!this.port.withdraw(exchange.outgoing)) sent = true;
      exchange.answer.reject(new SwitchyardError('CANCELLED', `batch ${batchId} was cancelled`));
      this.forget(exchange);
    }
    if (sent && !this.lost)
      this.port.send({ make: () => ({ cancel: { batchId } }), rows: null, done: () => {} });
  }

  close(): void {
    this.lose(new SwitchyardError('LINK_LOST', 'the router closed the link'));
  }

  giveUpOpening(afterMs: number): void {
    const text = `no welcome from ${this.options.address} within ${afterMs} ms`;
    this.lose(this.welcomed ? ucxLoss(text) : new SwitchyardError('LINK_LOST', text));
  }

  /** Ends the link: everything outstanding rejects with LINK_LOST at once. Only the first reason counts. */
  lose(reason: SwitchyardError): void {
    if (this.lost) return;
    this.lost = reason;
    this.open.reject(reason);
    const error = this.lossOf(reason);
    this.credits.close(error);
    this.port.destroy();
    this.ucx?.destroy();
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
    const outgoing: Outgoing<RouterMessageInput> = {
      make: (inMessage) => {
        this.counts.messagesSent += 1;
        this.counts.bytesSent += bytes;
        return { tokens: { meta: toWireMeta(id, meta), ...(inMessage && { rows: inMessage }) } };
      },
      rows: { slab: rows, bytes },
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
    this.port.send(outgoing);
    return exchange;
  }

  private abandon(exchange: Exchange, error: SwitchyardError): void {
    exchange.answer.reject(error);
    exchange.state = 'abandoned';
    if (this.exchanges.has(exchange.id) && this.port.withdraw(exchange.outgoing)) this.forget(exchange);
  }

  private forget(exchange: Exchange): void {
    if (this.exchanges.delete(exchange.id)) this.credits.release(exchange.cost);
  }

  private receive(message: WorkerMessage, rows: ArrivedRows): void {
    if (this.lost || !message.result) dropRows(rows);
    if (this.lost) return;
    if (message.welcome) void this.welcome(message.welcome);
    else if (!this.welcomed) this.lose(violation('the first message of the worker is not a welcome'));
    else if (message.result) void this.receiveResult(message.result.meta, rows);
    else if (message.failure) {
      const { failure } = message;
      const exchange = this.answered(failure.exchange);
      if (!exchange) return;
      exchange.answer.reject(fromWireFailure(failure, this.worker));
      this.forget(exchange);
    }
  }

  /** The first welcome comes over gRPC; if it accepts UCX, the hello is repeated there, and a second welcome answers it. */
  private async welcome(welcome: LinkWelcome): Promise<void> {
    const again = this.welcomed && this.port === this.ucx && this.transport === 'grpc';
    if ((this.welcomed && !again) || welcome.worker !== this.worker) {
      const fault = this.welcomed ? 'a second welcome' : `a welcome of worker ${welcome.worker}`;
      this.lose(violation(`${this.options.address}, worker ${this.worker}, sent ${fault}`));
      return;
    }
    this.welcomed = true;
    try {
      if (again) {
        this.transport = 'ucx';
        this.lanes = await this.ucx!.transports();
        this.reason = this.options.transport === 'ucx' ? 'transport is ucx' : 'both ends have UCX';
      } else {
        this.credits = new Credits(welcome.creditBytes);
        this.rowsBytesMax = Math.min(welcome.messageBytesMax, this.options.messageBytesMax);
        if (await this.moveToUcx(welcome)) return;
      }
      this.open.resolve();
    } catch (error) {
      this.lose(asSwitchyardError(error));
    }
  }

  /** False: the link stays on gRPC. */
  private async moveToUcx({ ucx: end, ucxDeclined }: LinkWelcome): Promise<boolean> {
    if (this.ucx && end) {
      await this.ucx.connect(end).catch((error) => {
        throw ucxLoss(asSwitchyardError(error).message);
      });
      if (this.lost) return true;
      this.port = this.ucx;
      this.sendHello(null);
      return true;
    }
    if (this.ucx) this.reason = ucxDeclined || `worker ${this.worker} declined UCX`;
    if (this.options.transport === 'ucx') throw ucxLoss(this.reason);
    this.ucx?.destroy();
    return false;
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

  private async receiveResult(meta: ResultMeta | null, rows: ArrivedRows): Promise<void> {
    const exchange = meta && this.answered(meta.exchange);
    if (!exchange) {
      dropRows(rows);
      return;
    }
    let slab: Slab;
    try {
      const expected = resultRowCount(exchange.meta);
      const bytes = rowsBytes(expected, exchange.meta.hidden);
      if (meta.rows !== expected || rows.byteLength !== bytes)
        throw this.wrongShape(meta.rows, rows.byteLength, expected, bytes);
      this.counts.messagesReceived += 1;
      this.counts.bytesReceived += bytes;
      slab = await intoSlab(rows, exchange.meta.hidden);
    } catch (error) {
      dropRows(rows);
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

/** Rows of a message that came over gRPC. */
function rowsIn({ result }: WorkerMessage): ArrivedRows {
  return rowsOfMessage(result?.rows ?? new Uint8Array(0));
}

function violation(message: string): SwitchyardError {
  return new SwitchyardError('LINK_LOST', message);
}
