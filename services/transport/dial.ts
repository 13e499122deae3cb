import { adviseAdvertiseHost } from '../common/advertise.js';
import { plainText } from '../common/control-limits.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ExchangeFailure } from '../common/generated/switchyard/v1/ExchangeFailure.js';
import type { LinkHelloInput } from '../common/generated/switchyard/v1/LinkHello.js';
import type { LinkWelcome } from '../common/generated/switchyard/v1/LinkWelcome.js';
import type { ResultBatch } from '../common/generated/switchyard/v1/ResultBatch.js';
import type { RouterMessageInput } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessage } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { Deferred, type EndSignal } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import { exchangeCodec } from '../common/protocol.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
import type { Dialer, Duplex } from '../runtime/duplex.js';
import type { Runtime } from '../runtime/runtime.js';
import { Exchanges } from './exchanges.js';
import { MessageWriter } from './grpc/writer.js';
import type {
  Link,
  LinkLimits,
  LinkStats,
  TokenBatch,
  TokenBatchResult,
  TransportChoice,
  TransportKind,
} from './link.js';
import { isAnswer, type LinkProof, proveLink } from './link-key.js';
import { type ArrivedRows, dropRows, type MessagePort, rowsOfMessage } from './port.js';
import { keyBytes } from './ucx/key.js';
import type { UcxPort } from './ucx/port.js';
import { isUcxUnreachable, type UcxSource, ucxLoss, whyNoUcx } from './ucx/source.js';

export interface LinkOptions {
  /** host:port of the worker's gRPC server. */
  address: string;
  /** This router's name. */
  router: string;
  /** Where this router serves. */
  host: string;
  /** The name that the worker must have. */
  worker: string;
  modelFingerprint: string;
  epoch: number;
  /** This router's key for links to the worker, from the coordinator. */
  key: Uint8Array;
  /** Rows of one answer, in bytes. */
  resultBytesMax: number;
  /** A worker silent for so long is lost. Default: half a minute. */
  leaseMs?: number;
  transport: TransportChoice;
  dial: Dialer<WorkerMessage, RouterMessageInput>;
  /** Null: this process has none. */
  ucx: UcxSource | null;
  runtime: Runtime;
  onUnknown?: OnUnknown;
  log: Logger;
}

const welcomeMsMax = 5_000;
/** Of a link, whatever the worker gives: results that have arrived over UCX must not take all memory. */
const creditBytesMax = 4 * 1024 ** 3;

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
  const link = new RouterLink(options, noUcx);
  const timer = options.runtime.clock.after(welcomeMsMax, () => link.giveUpOpening(welcomeMsMax));
  try {
    await link.opened;
    return link;
  } finally {
    timer.cancel();
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
  private readonly exchanges: Exchanges;
  private readonly stream: Duplex<WorkerMessage, RouterMessageInput>;
  private readonly proof: LinkProof;
  private welcomed = false;
  private lost: SwitchyardError | null = null;

  constructor(
    private readonly options: LinkOptions,
    noUcx = whyNoUcx(options.transport, 'the router'),
  ) {
    this.worker = options.worker;
    this.reason = noUcx;
    const { address, leaseMs, resultBytesMax, runtime } = options;
    const { random, rows } = runtime;
    this.proof = proveLink(random, options.key, options.router, options.worker);
    this.stream = options.dial(address, {
      authorization: this.proof.header,
      messageBytesMax: resultBytesMax,
      node: options.worker,
      ...(leaseMs !== undefined && { leaseMs }),
    });
    this.port = new MessageWriter(this.stream, rows);
    this.exchanges = new Exchanges(this.worker, () => this.port, runtime);
    const none = new Uint8Array(0);
    this.stream.listen({
      message: (message) => this.receive(message, rowsOfMessage(message.result?.rows ?? none, rows)),
      end: () => this.lose(new SwitchyardError('LINK_LOST', 'the worker ended the link')),
      fail: (error) => this.lose(adviseAdvertiseHost(error, `worker ${this.worker}`)),
    });
    const key = random.bytes(keyBytes);
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
    const { transport, ucx, host } = this.options;
    const fabric = transport === 'grpc' || ucx === null ? null : ucx.fabric(host);
    if (fabric === null || ucx === null) return null;
    const port = ucx.createPort(fabric, {
      codec: exchangeCodec.client,
      key,
      rowBytesMax: this.options.resultBytesMax,
      rowBytesInFlightMax: creditBytesMax,
    });
    port
      .receive((message, rows) => this.receive(message, rows))
      .catch((error) => this.lose(ucxLoss(asSwitchyardError(error).message)));
    return port;
  }

  private sendHello(offer: Pick<LinkHelloInput, 'ucx' | 'ucxKey'> | null): void {
    const { modelFingerprint, epoch, resultBytesMax } = this.options;
    const hello = { modelFingerprint, epoch, resultBytesMax, ...offer };
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
    return this.exchanges.stats;
  }

  get limits(): LinkLimits {
    return this.exchanges.limits;
  }

  exchange(batch: TokenBatch, signal: EndSignal): Promise<TokenBatchResult> {
    return this.exchanges.exchange(batch, signal);
  }

  cancel(batchId: string): void {
    if (this.exchanges.cancel(batchId) && !this.lost)
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
    this.exchanges.end(this.lossOf(reason));
    this.ucx?.abandon();
    this.port.destroy();
    this.stream.destroy();
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

  private receive(message: WorkerMessage, rows: ArrivedRows): void {
    if (this.lost || !message.result) dropRows(rows);
    if (this.lost) return;
    if (message.welcome) void this.welcome(message.welcome);
    else if (!this.welcomed) this.lose(violation('the first message of the worker is not a welcome'));
    else if (message.result) void this.result(message.result, rows);
    else if (message.failure) this.failure(message.failure);
    else this.options.onUnknown?.('link');
  }

  private async result({ meta }: ResultBatch, rows: ArrivedRows): Promise<void> {
    try {
      if (meta) await this.exchanges.result(meta, rows);
      else dropRows(rows);
    } catch (error) {
      this.lose(asSwitchyardError(error));
    }
  }

  private failure(failure: ExchangeFailure): void {
    try {
      this.exchanges.failure(failure);
    } catch (error) {
      this.lose(asSwitchyardError(error));
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
    if (!again && !isAnswer(this.proof, welcome.proof)) {
      this.lose(violation(`${this.options.address} does not know the key of worker ${this.worker}`));
      return;
    }
    this.welcomed = true;
    try {
      if (again) {
        this.transport = 'ucx';
        this.lanes = await this.ucx!.transports();
        this.reason = this.options.transport === 'ucx' ? 'transport is ucx' : 'both ends have UCX';
      } else {
        this.exchanges.open({
          rowBytesMax: welcome.messageBytesMax,
          resultBytesMax: this.options.resultBytesMax,
          creditBytes: Math.min(welcome.creditBytes, creditBytesMax),
        });
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
    if (this.ucx) this.reason = plainText(ucxDeclined) || `worker ${this.worker} declined UCX`;
    if (this.options.transport === 'ucx') throw ucxLoss(this.reason);
    this.ucx?.destroy();
    return false;
  }
}

function violation(message: string): SwitchyardError {
  return new SwitchyardError('LINK_LOST', message);
}
