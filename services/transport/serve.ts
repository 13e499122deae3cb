import type { ServerDuplexStream } from '@grpc/grpc-js';
import type { Access } from '../common/access.js';
import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import type { BatchMeta } from '../common/generated/switchyard/v1/BatchMeta.js';
import type { LinkHello } from '../common/generated/switchyard/v1/LinkHello.js';
import type { LinkWelcomeInput } from '../common/generated/switchyard/v1/LinkWelcome.js';
import type { RouterMessage } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessageInput } from '../common/generated/switchyard/v1/WorkerMessage.js';
import type { GrpcService } from '../common/grpc-server.js';
import type { Logger } from '../common/log.js';
import { exchangeCodec, services } from '../common/protocol.js';
import { toServiceError } from '../common/status.js';
import { nowMicroseconds, type Trace } from '../common/trace.js';
import { MessageWriter } from './grpc/writer.js';
import type {
  TokenBatchHandler,
  TokenBatchMeta,
  TokenBatchResult,
  TransportChoice,
  TransportKind,
} from './link.js';
import { checkLink, isLinkProof, type LinkProof } from './link-key.js';
import { creditCost, fromWireMeta, resultRowCount, rowsBytes, toWireFailure } from './messages.js';
import {
  type ArrivedRows,
  dropRows,
  intoSlab,
  type MessagePort,
  type Outgoing,
  rowsOfMessage,
} from './port.js';
import { UcxPort, ucxLoss, ucxOrNull, whyNoUcx } from './ucx/port.js';

export interface LinkServiceOptions {
  /** This worker's name. */
  worker: string;
  /** Of which the keys of its links are made. */
  secret: Uint8Array;
  /** Of the server: says why a call is refused that does not even try to be a link. */
  access: Access;
  /** What routers must serve too; null: not known yet, links are refused with NOT_READY. */
  model: () => { fingerprint: string; hidden: number } | null;
  /** Bytes of rows (received plus to be returned) that each router may have outstanding. */
  creditBytes: number;
  /** Bytes of rows of one token batch. */
  messageBytesMax: number;
  transport: TransportChoice;
  handler: TokenBatchHandler;
  /** No answers are wanted any more for this batch of this router: it was cancelled, or its link is gone. */
  onCancel: (batchId: string, router: string) => void;
  trace?: Trace | null;
  log: Logger;
}

/** A welcome's answer to an offer of UCX; empty where there is none. */
type AboutUcx = Pick<LinkWelcomeInput, 'ucx' | 'ucxDeclined'>;

type LinkCall = ServerDuplexStream<RouterMessage, WorkerMessageInput>;

/** A token batch between its arrival and its answer. */
interface Pending {
  readonly id: number;
  readonly batchId: string;
  readonly cost: number;
  /** The answer, once it waits to be sent. */
  outgoing: Outgoing<WorkerMessageInput> | null;
}

const helloMsMax = 5_000;

/** Answers that may wait for a router that does not read, before nothing more is read from it. */
const answersQueuedMax = 64;

/** The worker's side of all links, as a service for startGrpcServer. */
export function linkService(options: LinkServiceOptions): GrpcService {
  const links = new Map<string, WorkerLink>();
  return {
    definition: services.Experts,
    implementation: {
      Exchange: (call: LinkCall) => {
        try {
          new WorkerLink(options, call, proofOf(call, options), links);
        } catch (error) {
          refuse(call, error, options);
        }
      },
    },
  };
}

/** Who calls, before anything else that they say is read. Throws UNAUTHENTICATED or PERMISSION_DENIED. */
function proofOf(call: LinkCall, { secret, worker, access }: LinkServiceOptions): LinkProof {
  const header = call.metadata.get('authorization')[0];
  if (!isLinkProof(header)) access.check(call.getPath(), header);
  return checkLink(String(header), secret, worker);
}

function refuse(call: LinkCall, thrown: unknown, { log }: LinkServiceOptions): void {
  const error = toServiceError(thrown);
  log.warn({ event: 'call-refused', method: call.getPath(), peer: call.getPeer(), reason: error.message });
  call.emit('error', error);
}

class WorkerLink {
  private readonly writer: MessageWriter<WorkerMessageInput>;
  private port: MessagePort<WorkerMessageInput>;
  private ucx: UcxPort<WorkerMessageInput, RouterMessage> | null = null;
  private readonly pending = new Map<number, Pending>();
  private readonly helloTimer: NodeJS.Timeout;
  private outstandingBytes = 0;
  private lastId = 0;
  private router: string | null = null;
  private hidden = 0;
  private halfClosed = false;
  private over = false;

  constructor(
    private readonly options: LinkServiceOptions,
    private readonly call: LinkCall,
    private readonly proof: LinkProof,
    /** The open links of all routers; each router has one. */
    private readonly links: Map<string, WorkerLink>,
  ) {
    this.writer = new MessageWriter(call, () => this.idle());
    this.port = this.writer;
    this.helloTimer = setTimeout(() => {
      this.fail(new SwitchyardError('DEADLINE_EXCEEDED', `no hello within ${helloMsMax} ms`));
    }, helloMsMax);
    call.on('data', (message: RouterMessage) => this.receive(message, rowsIn(message), 'grpc'));
    call.on('end', () => {
      this.halfClosed = true;
      this.idle();
    });
    call.on('cancelled', () => this.close());
  }

  private receive(message: RouterMessage, rows: ArrivedRows, over: TransportKind): void {
    if (this.over || !message.tokens) dropRows(rows);
    if (this.over) return;
    try {
      if (message.hello && over === 'ucx') this.moveToUcx();
      else if (message.hello) void this.open(message.hello).catch((error) => this.fail(error));
      else if (this.router === null)
        throw invalidArgument('kind', message.kind ?? 'none', 'hello as the first message');
      else if (message.tokens) this.receiveTokens(message.tokens.meta, rows, this.router);
      else if (message.cancel) this.cancel(message.cancel.batchId, this.router);
      else throw invalidArgument('kind', 'none', 'hello, tokens, cancel');
    } catch (error) {
      dropRows(rows);
      this.fail(error);
    }
  }

  private async open(hello: LinkHello): Promise<void> {
    const { worker, log } = this.options;
    const { router } = this.proof;
    if (this.router !== null) throw invalidArgument('kind', 'hello', 'one hello on a link');
    const model = this.options.model();
    if (model === null)
      throw new SwitchyardError('NOT_READY', `worker ${worker} has no model yet`, { worker });
    this.checkModel(hello, model.fingerprint);
    clearTimeout(this.helloTimer);
    // A router that connects anew has lost the old link, whether this side has noticed or not.
    this.links.get(router)?.fail(new SwitchyardError('LINK_LOST', `router ${router} has connected anew`));
    this.links.set(router, this);
    this.router = router;
    this.hidden = model.hidden;
    const aboutUcx = await this.openUcx(hello);
    log.info({
      event: 'link-opened',
      router,
      transport: this.ucx ? 'ucx' : 'grpc',
      reason: aboutUcx.ucxDeclined,
    });
    this.sendWelcome({ ...aboutUcx, proof: this.proof.answer });
  }

  private checkModel({ modelFingerprint }: LinkHello, allowed: string): void {
    if (modelFingerprint === allowed) return;
    const { worker } = this.options;
    const { router } = this.proof;
    const text = `model_fingerprint of router ${router} is ${JSON.stringify(modelFingerprint)}; worker ${worker} serves ${allowed}`;
    throw new SwitchyardError('MODEL_MISMATCH', text, { worker, value: modelFingerprint, allowed });
  }

  private sendWelcome(also: LinkWelcomeInput): void {
    const { worker, creditBytes, messageBytesMax } = this.options;
    const welcome = { worker, creditBytes, messageBytesMax, ...also };
    this.port.send({ make: () => ({ welcome }), rows: null, done: () => {} });
  }

  /** Takes or declines a router's offer of UCX. Messages are sent there once the router has been heard there. */
  private async openUcx({ ucx: end, ucxKey }: LinkHello): Promise<AboutUcx> {
    if (!end) return {};
    const { transport, worker, messageBytesMax, creditBytes } = this.options;
    const ucx = transport === 'grpc' ? null : ucxOrNull();
    if (ucx === null) return { ucxDeclined: whyNoUcx(transport, `worker ${worker}`) };
    try {
      const port = new UcxPort(ucx, {
        codec: exchangeCodec.worker,
        key: ucxKey,
        rowBytesMax: messageBytesMax,
        rowBytesInFlightMax: creditBytes,
        reportSends: Boolean(this.options.trace),
      });
      this.ucx = port;
      port
        .receive((message, rows) => this.receive(message, rows, 'ucx'))
        .catch((error) => this.fail(error.code === 'LINK_LOST' ? ucxLoss(error.message) : error));
      await port.connect(end);
      return { ucx: port.end };
    } catch (thrown) {
      this.ucx?.destroy();
      this.ucx = null;
      const error = asSwitchyardError(thrown);
      if (error.code === 'INVALID_ARGUMENT') throw error;
      return { ucxDeclined: `worker ${worker} has no way over UCX: ${error.message}` };
    }
  }

  private moveToUcx(): void {
    if (this.ucx === null || this.port === this.ucx)
      throw invalidArgument('kind', 'hello', 'one hello on a link');
    this.port = this.ucx;
    this.sendWelcome({});
  }

  /** Throws what ends the link; what concerns the token batch alone is answered as its failure. */
  private receiveTokens(meta: BatchMeta | null, rows: ArrivedRows, router: string): void {
    if (!meta) throw invalidArgument('meta', 'missing', 'the metadata of the token batch');
    const { exchange } = meta;
    if (!Number.isSafeInteger(exchange) || exchange <= this.lastId) {
      throw invalidArgument('exchange', exchange, `above ${this.lastId}, the last one, and below 2^53`);
    }
    this.lastId = exchange;
    let checked: TokenBatchMeta;
    try {
      checked = fromWireMeta(meta, rows.byteLength, {
        hidden: this.hidden,
        messageBytesMax: this.options.messageBytesMax,
      });
    } catch (error) {
      dropRows(rows);
      this.sendFailure(exchange, error);
      return;
    }
    const { trace } = this.options;
    if (rows.transfer)
      trace?.beside(`receive from ${router}`, 'receive', rows.transfer, traced(checked, rows.byteLength));
    const pending = { id: exchange, batchId: checked.batchId, cost: creditCost(checked), outgoing: null };
    this.takeCredit(pending);
    void this.answer(pending, checked, rows, router);
  }

  private takeCredit(pending: Pending): void {
    const { creditBytes } = this.options;
    const bytes = this.outstandingBytes + pending.cost;
    if (bytes > creditBytes) {
      const text = `bytes outstanding is ${bytes}; allowed: at most ${creditBytes}, the credit of the link`;
      throw new SwitchyardError('RESOURCE_EXHAUSTED', text, {
        field: 'bytes outstanding',
        value: bytes,
        allowed: creditBytes,
      });
    }
    this.outstandingBytes = bytes;
    this.pending.set(pending.id, pending);
  }

  private async answer(
    pending: Pending,
    meta: TokenBatchMeta,
    arrived: ArrivedRows,
    router: string,
  ): Promise<void> {
    let result: TokenBatchResult;
    try {
      const rows = await intoSlab(arrived, meta.hidden);
      if (!this.pending.has(pending.id)) {
        rows.release();
        return;
      }
      // The handler owns the rows from here on.
      result = await this.options.handler({ meta, rows }, router);
    } catch (error) {
      if (this.settle(pending)) this.sendFailure(pending.id, error);
      return;
    }
    if (this.pending.has(pending.id)) this.sendResult(pending, meta, result);
    else result.rows.release();
  }

  private sendResult(pending: Pending, meta: TokenBatchMeta, result: TokenBatchResult): void {
    const { rows, rowCount, computeSeconds, queueSeconds } = result;
    const bytes = rowsBytes(rowCount, meta.hidden);
    if (rowCount !== resultRowCount(meta) || rows.byteLength < bytes) {
      rows.release();
      this.settle(pending);
      const text = `the worker made ${rowCount} rows of an answer; expected: ${resultRowCount(meta)}`;
      this.sendFailure(pending.id, new SwitchyardError('INTERNAL', text));
      return;
    }
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
      done: () => rows.release(),
      sent: (end) => {
        const sending = { start: started, end };
        this.options.trace?.beside(`send to ${this.router}`, 'send', sending, traced(meta, bytes));
      },
    };
    this.enqueue(pending.outgoing);
  }

  private sendFailure(exchange: number, error: unknown): void {
    const failure = toWireFailure(exchange, error);
    this.enqueue({ make: () => ({ failure }), rows: null, done: () => {} });
  }

  private enqueue(outgoing: Outgoing<WorkerMessageInput>): void {
    this.port.send(outgoing);
    if (this.writer.queued > answersQueuedMax) this.call.pause();
  }

  /** False if the exchange is settled already. */
  private settle(pending: Pending): boolean {
    if (!this.pending.delete(pending.id)) return false;
    this.outstandingBytes -= pending.cost;
    return true;
  }

  private cancel(batchId: string, router: string): void {
    let found = false;
    for (const pending of this.pending.values()) {
      if (pending.batchId !== batchId) continue;
      found = true;
      this.settle(pending);
      if (pending.outgoing) this.port.withdraw(pending.outgoing);
    }
    if (found) this.options.onCancel(batchId, router);
  }

  /** Everything queued is sent. */
  private idle(): void {
    if (this.over) return;
    if (this.call.isPaused()) this.call.resume();
    if (!this.halfClosed || this.pending.size > 0 || this.writer.queued > 0) return;
    this.close();
    this.call.end();
  }

  /** Ends the link with an error that the router sees as its reason. */
  private fail(thrown: unknown): void {
    if (this.over) return;
    const error = asSwitchyardError(thrown);
    this.options.log.warn({
      event: 'link-failed',
      router: this.router,
      code: error.code,
      reason: error.message,
    });
    this.close();
    this.call.emit('error', toServiceError(error));
  }

  private close(): void {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.helloTimer);
    this.writer.destroy();
    this.ucx?.abandon();
    const { router } = this;
    if (router === null) return;
    if (this.links.get(router) === this) this.links.delete(router);
    const batches = new Set([...this.pending.values()].map(({ batchId }) => batchId));
    this.pending.clear();
    for (const batchId of batches) this.options.onCancel(batchId, router);
    this.options.log.info({ event: 'link-closed', router });
  }
}

function traced({ batchId, chunk, layer, rowCount }: TokenBatchMeta, bytes: number) {
  return { batch: batchId, chunk, layer, rows: rowCount, bytes };
}

/** Rows of a message that came over gRPC. */
function rowsIn({ tokens }: RouterMessage): ArrivedRows {
  return rowsOfMessage(tokens?.rows ?? new Uint8Array(0));
}
