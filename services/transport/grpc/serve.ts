import type { ServerDuplexStream } from '@grpc/grpc-js';
import { native, type Slab } from '../../../native/index.js';
import { asSwitchyardError, invalidArgument, SwitchyardError } from '../../common/errors.js';
import type { LinkHello } from '../../common/generated/switchyard/v1/LinkHello.js';
import type { RouterMessage } from '../../common/generated/switchyard/v1/RouterMessage.js';
import type { TokenBatch as WireTokenBatch } from '../../common/generated/switchyard/v1/TokenBatch.js';
import type { WorkerMessageInput } from '../../common/generated/switchyard/v1/WorkerMessage.js';
import type { GrpcService } from '../../common/grpc-server.js';
import type { Logger } from '../../common/log.js';
import { services } from '../../common/protocol.js';
import { toServiceError } from '../../common/status.js';
import type { TokenBatchHandler, TokenBatchMeta, TokenBatchResult } from '../link.js';
import { creditCost, fromWireMeta, resultRowCount, rowsBytes, toWireFailure } from './messages.js';
import { MessageWriter, type Outgoing } from './writer.js';

export interface GrpcLinkServiceOptions {
  /** This worker's name. */
  worker: string;
  /** What routers must serve too; null: not known yet, links are refused with NOT_READY. */
  model: () => { fingerprint: string; hidden: number } | null;
  /** Bytes of rows (received plus to be returned) that each router may have outstanding. */
  creditBytes: number;
  /** Bytes of rows of one token batch. */
  messageBytesMax: number;
  handler: TokenBatchHandler;
  /** No answers are wanted any more for this batch of this router: it was cancelled, or its link is gone. */
  onCancel: (batchId: string, router: string) => void;
  log: Logger;
}

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
export function grpcLinkService(options: GrpcLinkServiceOptions): GrpcService {
  const links = new Map<string, WorkerLink>();
  return {
    definition: services.Experts,
    implementation: {
      Exchange: (call: LinkCall) => {
        new WorkerLink(options, call, links);
      },
    },
  };
}

class WorkerLink {
  private readonly writer: MessageWriter<WorkerMessageInput>;
  private readonly pending = new Map<number, Pending>();
  private readonly helloTimer: NodeJS.Timeout;
  private outstandingBytes = 0;
  private lastId = 0;
  private router: string | null = null;
  private hidden = 0;
  private halfClosed = false;
  private over = false;

  constructor(
    private readonly options: GrpcLinkServiceOptions,
    private readonly call: LinkCall,
    /** The open links of all routers; each router has one. */
    private readonly links: Map<string, WorkerLink>,
  ) {
    this.writer = new MessageWriter(call, () => this.idle());
    this.helloTimer = setTimeout(() => {
      this.fail(new SwitchyardError('DEADLINE_EXCEEDED', `no hello within ${helloMsMax} ms`));
    }, helloMsMax);
    call.on('data', (message: RouterMessage) => this.receive(message));
    call.on('end', () => {
      this.halfClosed = true;
      this.idle();
    });
    call.on('cancelled', () => this.close());
  }

  private receive(message: RouterMessage): void {
    if (this.over) return;
    try {
      if (message.hello) this.open(message.hello);
      else if (this.router === null)
        throw invalidArgument('kind', message.kind ?? 'none', 'hello as the first message');
      else if (message.tokens) this.receiveTokens(message.tokens, this.router);
      else if (message.cancel) this.cancel(message.cancel.batchId, this.router);
      else throw invalidArgument('kind', 'none', 'hello, tokens, cancel');
    } catch (error) {
      this.fail(error);
    }
  }

  private open({ router, modelFingerprint }: LinkHello): void {
    const { worker, creditBytes, messageBytesMax, log } = this.options;
    if (this.router !== null) throw invalidArgument('kind', 'hello', 'one hello on a link');
    if (router === '') throw invalidArgument('router', router, 'the name of the router');
    const model = this.options.model();
    if (model === null)
      throw new SwitchyardError('NOT_READY', `worker ${worker} has no model yet`, { worker });
    const allowed = model.fingerprint;
    if (modelFingerprint !== allowed) {
      const text = `model_fingerprint of router ${router} is ${JSON.stringify(modelFingerprint)}; worker ${worker} serves ${allowed}`;
      throw new SwitchyardError('MODEL_MISMATCH', text, { worker, value: modelFingerprint, allowed });
    }
    clearTimeout(this.helloTimer);
    // A router that connects anew has lost the old link, whether this side has noticed or not.
    this.links.get(router)?.fail(new SwitchyardError('LINK_LOST', `router ${router} has connected anew`));
    this.links.set(router, this);
    this.router = router;
    this.hidden = model.hidden;
    log.info({ event: 'link-opened', router });
    this.writer.send({ make: () => ({ welcome: { worker, creditBytes, messageBytesMax } }), done: () => {} });
  }

  /** Throws what ends the link; what concerns the token batch alone is answered as its failure. */
  private receiveTokens({ meta, rows }: WireTokenBatch, router: string): void {
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
      this.sendFailure(exchange, error);
      return;
    }
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
    bytes: Uint8Array,
    router: string,
  ): Promise<void> {
    let rows: Slab | null = null;
    let result: TokenBatchResult;
    try {
      rows = native.allocateSlab(bytes.byteLength);
      await native.ingestRows(bytes, rows, 0, meta.hidden);
      if (!this.pending.has(pending.id)) {
        rows.release();
        return;
      }
      const batch = { meta, rows };
      // The handler owns them from here on.
      rows = null;
      result = await this.options.handler(batch, router);
    } catch (error) {
      rows?.release();
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
    pending.outgoing = {
      make: () => {
        // From here on the router may take the credit as given back.
        this.settle(pending);
        return {
          result: {
            meta: { exchange: pending.id, rows: rowCount, computeSeconds, queueSeconds },
            rows: rows.view().subarray(0, bytes),
          },
        };
      },
      done: () => rows.release(),
    };
    this.enqueue(pending.outgoing);
  }

  private sendFailure(exchange: number, error: unknown): void {
    const failure = toWireFailure(exchange, error);
    this.enqueue({ make: () => ({ failure }), done: () => {} });
  }

  private enqueue(outgoing: Outgoing<WorkerMessageInput>): void {
    this.writer.send(outgoing);
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
      if (pending.outgoing) this.writer.withdraw(pending.outgoing);
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
    const { router } = this;
    if (router === null) return;
    if (this.links.get(router) === this) this.links.delete(router);
    const batches = new Set([...this.pending.values()].map(({ batchId }) => batchId));
    this.pending.clear();
    for (const batchId of batches) this.options.onCancel(batchId, router);
    this.options.log.info({ event: 'link-closed', router });
  }
}
