import { type ClientDuplexStream, Metadata } from '@grpc/grpc-js';
import { adviseAdvertiseHost } from '../common/advertise.js';
import { plainText } from '../common/control-limits.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ExchangeFailure } from '../common/generated/switchyard/v1/ExchangeFailure.js';
import type { ExpertsClient } from '../common/generated/switchyard/v1/Experts.js';
import type { LinkHelloInput } from '../common/generated/switchyard/v1/LinkHello.js';
import type { LinkWelcome } from '../common/generated/switchyard/v1/LinkWelcome.js';
import type { ResultBatch } from '../common/generated/switchyard/v1/ResultBatch.js';
import type { RouterMessageInput } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessage } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { connect } from '../common/grpc-channel.js';
import { Deferred, type EndSignal } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import { clients, exchangeCodec } from '../common/protocol.js';
import { fromServiceError } from '../common/status.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
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
import { randomKey } from './ucx/key.js';
import { isUcxUnreachable, UcxPort, ucxLoss, ucxOrNull, whyNoUcx } from './ucx/port.js';

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
  onUnknown?: OnUnknown;
  log: Logger;
}

type LinkCall = ClientDuplexStream<RouterMessageInput, WorkerMessage>;

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
  const { address, leaseMs, resultBytesMax } = options;
  const client = connect(clients.Experts, address, {
    token: null,
    messageBytesMax: resultBytesMax,
    ...(leaseMs !== undefined && { leaseMs }),
  });
  const link = new RouterLink(options, client, noUcx);
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
  private readonly exchanges: Exchanges;
  private readonly call: LinkCall;
  private readonly proof: LinkProof;
  private welcomed = false;
  private lost: SwitchyardError | null = null;

  constructor(
    private readonly options: LinkOptions,
    private readonly client: ExpertsClient,
    noUcx = whyNoUcx(options.transport, 'the router'),
  ) {
    this.worker = options.worker;
    this.reason = noUcx;
    this.proof = proveLink(options.key, options.router, options.worker);
    const metadata = new Metadata();
    metadata.set('authorization', this.proof.header);
    const call = client.Exchange(metadata);
    this.call = call;
    this.port = new MessageWriter(call);
    this.exchanges = new Exchanges(this.worker, () => this.port);
    call.on('data', (message: WorkerMessage) => this.receive(message, rowsIn(message)));
    call.on('error', (error) =>
      this.lose(adviseAdvertiseHost(fromServiceError(error), `worker ${this.worker}`)),
    );
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
    const ucx = this.options.transport === 'grpc' ? null : ucxOrNull(this.options.host);
    if (ucx === null) return null;
    const port = new UcxPort(ucx, {
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

/** Rows of a message that came over gRPC. */
function rowsIn({ result }: WorkerMessage): ArrivedRows {
  return rowsOfMessage(result?.rows ?? new Uint8Array(0));
}

function violation(message: string): SwitchyardError {
  return new SwitchyardError('LINK_LOST', message);
}
