import { adviseAdvertiseHost } from '../common/advertise.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ExchangeFailure } from '../common/generated/switchyard/v1/ExchangeFailure.js';
import type { LinkOfferInput } from '../common/generated/switchyard/v1/LinkOffer.js';
import type { LinkWelcome } from '../common/generated/switchyard/v1/LinkWelcome.js';
import type { ResultBatch } from '../common/generated/switchyard/v1/ResultBatch.js';
import type { RouterMessageInput } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessage } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { Deferred, End, type EndSignal } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
import type { Timer } from '../runtime/clock.js';
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
import type { RouterChannel } from './router-channel.js';
import { creditBytesMax, type Entered, RouterUcx } from './router-ucx.js';
import type { UcxSource } from './ucx/source.js';

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
  /** Called when the open link has moved from gRPC to UCX. */
  onMoved?: () => void;
  log: Logger;
}

const welcomeMsMax = 5_000;

/**
 * Connects to a worker, over UCX where the choice allows it and both ends reach each other by it. A link for `auto` that has to stay on gRPC for a reason that may pass
 * offers UCX again in the background, and moves there. Rejects with what the worker refuses the link with (MODEL_MISMATCH, NOT_READY), and with
 * LINK_LOST when it cannot be reached, does not answer in time, or is another worker.
 */
export async function dialLink(options: LinkOptions): Promise<Link> {
  const link = new RouterLink(options);
  await link.opened;
  return link;
}

class RouterLink implements Link {
  readonly worker: string;
  transport: TransportKind = 'grpc';
  lanes = 'http2';
  private movedFor: string | null = null;
  private readonly open = new Deferred<void>();
  private readonly gone = new Deferred<Error>();
  private readonly over = new End();
  private readonly stream: Duplex<WorkerMessage, RouterMessageInput>;
  private readonly writer: MessageWriter<RouterMessageInput>;
  private readonly ucx: RouterUcx;
  /** Where token batches go: to the stream, or to UCX once the link has moved there. */
  private port: MessagePort<RouterMessageInput>;
  private readonly exchanges: Exchanges;
  private readonly proof: LinkProof;
  private readonly openTimer: Timer;
  private welcomed = false;

  constructor(private readonly options: LinkOptions) {
    this.worker = options.worker;
    const { address, leaseMs, resultBytesMax, runtime } = options;
    const { random, rows, clock } = runtime;
    this.proof = proveLink(random, options.key, options.router, options.worker);
    this.stream = options.dial(address, {
      authorization: this.proof.header,
      messageBytesMax: resultBytesMax,
      node: options.worker,
      ...(leaseMs !== undefined && { leaseMs }),
    });
    this.writer = new MessageWriter(this.stream, rows);
    this.port = this.writer;
    this.exchanges = new Exchanges(this.worker, () => this.port, runtime);
    this.ucx = new RouterUcx(options, {
      sayOffer: (offer) => this.say(this.writer, { offer }),
      sayHello: ({ port }) => this.sayHello(port, null),
      onMessage: (message, rows, channel) => this.receive(message, rows, channel),
      onLost: (error) => this.lose(error),
      over: this.over,
    });
    const none = new Uint8Array(0);
    this.stream.listen({
      message: (message) => this.receive(message, rowsOfMessage(message.result?.rows ?? none, rows), null),
      end: () => this.lose(new SwitchyardError('LINK_LOST', 'the worker ended the link')),
      fail: (error) => this.lose(adviseAdvertiseHost(error, `worker ${this.worker}`)),
    });
    const text = `no welcome from ${address} within ${welcomeMsMax} ms`;
    this.openTimer = clock.after(welcomeMsMax, () => this.lose(new SwitchyardError('LINK_LOST', text)));
    this.sayHello(this.writer, this.ucx.open());
  }

  private sayHello(port: MessagePort<RouterMessageInput>, offer: LinkOfferInput | null): void {
    const { modelFingerprint, epoch, resultBytesMax } = this.options;
    this.say(port, { hello: { modelFingerprint, epoch, resultBytesMax, ...offer } });
  }

  private say(port: MessagePort<RouterMessageInput>, message: RouterMessageInput): void {
    port.send({ make: () => message, rows: null, done: () => {} });
  }

  /** Resolves when token batches can be sent. */
  get opened(): Promise<void> {
    return this.open.promise;
  }

  get closed(): Promise<Error> {
    return this.gone.promise;
  }

  get reason(): string {
    return this.movedFor ?? this.ucx.refusal.reason;
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
    const ports = this.exchanges.cancel(batchId);
    if (!this.over.aborted) for (const port of ports) this.say(port, { cancel: { batchId } });
  }

  close(): void {
    this.lose(new SwitchyardError('LINK_LOST', 'the router closed the link'));
  }

  /** Ends the link: everything outstanding rejects with LINK_LOST at once. Only the first reason counts. */
  private lose(reason: SwitchyardError): void {
    if (this.over.aborted) return;
    this.over.abort(reason);
    this.openTimer.cancel();
    this.open.reject(reason);
    this.exchanges.end(this.lossOf(reason));
    this.ucx.end(reason);
    this.writer.destroy();
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

  /** `channel`: over which it has come; null: over gRPC. */
  private receive(message: WorkerMessage, rows: ArrivedRows, channel: RouterChannel | null): void {
    if (this.over.aborted || !message.result) dropRows(rows);
    if (this.over.aborted) return;
    if (message.welcome) this.welcome(message.welcome, channel);
    else if (!this.welcomed) this.lose(violation('the first message of the worker is not a welcome'));
    else if (message.result) void this.result(message.result, rows);
    else if (message.failure) this.failure(message.failure);
    else if (message.answer) this.ucx.hear(message.answer);
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

  /** The first welcome comes over gRPC. Where it accepts UCX, the hello is repeated there, and another welcome answers it. */
  private welcome(welcome: LinkWelcome, channel: RouterChannel | null): void {
    const { address } = this.options;
    const { worker, welcomed } = this;
    if (welcome.worker !== worker || (welcomed && channel === null)) {
      const fault = welcomed ? 'a second welcome' : `a welcome of worker ${welcome.worker}`;
      this.lose(violation(`${address}, worker ${worker}, sent ${fault}`));
    } else if (channel !== null) {
      channel.welcomed();
    } else if (!isAnswer(this.proof, welcome.proof)) {
      this.lose(violation(`${address} does not know the key of worker ${worker}`));
    } else {
      this.welcomed = true;
      this.openTimer.cancel();
      void this.begin(welcome).catch((error) => this.lose(asSwitchyardError(error)));
    }
  }

  private async begin(welcome: LinkWelcome): Promise<void> {
    const { resultBytesMax, transport } = this.options;
    this.exchanges.open({
      rowBytesMax: welcome.messageBytesMax,
      resultBytesMax,
      creditBytes: Math.min(welcome.creditBytes, creditBytesMax),
    });
    const entered = await this.ucx.enter(welcome);
    if (entered !== null) this.move(entered);
    else if (transport === 'ucx') throw this.ucx.refusal.error;
    this.open.resolve();
    if (entered === null) await this.moveLater();
  }

  /** What is under way on the stream is answered there. */
  private move({ channel, lanes }: Entered): void {
    this.port = channel.port;
    this.transport = 'ucx';
    this.lanes = lanes;
    this.movedFor = this.options.transport === 'ucx' ? 'transport is ucx' : 'both ends have UCX';
  }

  private async moveLater(): Promise<void> {
    // It rejects with the link's end.
    const entered = await this.ucx.enterLater().catch(() => null);
    if (entered === null || this.over.aborted) return;
    this.move(entered);
    this.options.onMoved?.();
  }
}

function violation(message: string): SwitchyardError {
  return new SwitchyardError('LINK_LOST', message);
}
