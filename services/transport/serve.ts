import type { Access } from '../common/access.js';
import { checkNodeName } from '../common/certificate.js';
import {
  asSwitchyardError,
  type ErrorCode,
  invalidArgument,
  quoted,
  SwitchyardError,
} from '../common/errors.js';
import type { LinkHello } from '../common/generated/switchyard/v1/LinkHello.js';
import type { LinkOffer } from '../common/generated/switchyard/v1/LinkOffer.js';
import type { LinkWelcomeInput } from '../common/generated/switchyard/v1/LinkWelcome.js';
import type { RouterMessage } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessageInput } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { Deferred, onAbort } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import { exchangeCodec, services } from '../common/protocol.js';
import type { Trace } from '../common/trace.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
import type { Timer } from '../runtime/clock.js';
import type { Caller, Duplex, Listener } from '../runtime/duplex.js';
import type { Runtime } from '../runtime/runtime.js';
import { Answers, type AnswerWay } from './answers.js';
import { MessageWriter } from './grpc/writer.js';
import { acceptUcx, type UcxOffer } from './handshake.js';
import type { TokenBatchHandler, TransportChoice, TransportKind } from './link.js';
import { checkLink, isLinkProof, type LinkProof } from './link-key.js';
import { type ArrivedRows, dropRows, rowsOfMessage } from './port.js';
import { type Fabric, type UcxSource, ucxLoss } from './ucx/source.js';
import { LinkWindows } from './windows.js';
import { WorkerChannel } from './worker-channel.js';

export interface LinkServiceOptions {
  /** This worker's name. */
  worker: string;
  /** Where this worker serves. */
  host: string;
  /** Of which the keys of its links are made. */
  secret: Uint8Array;
  /** Of the server: says why a call is refused that does not even try to be a link. */
  access: Access;
  /** What routers must serve too; null: not known yet, links are refused with NOT_READY. */
  model: () => { fingerprint: string; hidden: number } | null;
  /** Bytes of credit that each router may have outstanding, as far as `slabBytes` allows. */
  linkWindowBytes: number;
  /** Limit of the slabs of this process. */
  slabBytes: number;
  /** Bytes of rows of one token batch. */
  messageBytesMax: number;
  transport: TransportChoice;
  /** Null: this process has none. */
  ucx: UcxSource | null;
  runtime: Runtime;
  handler: TokenBatchHandler;
  /** No answers are wanted any more for this batch of this router: it was cancelled, or its link is gone. */
  onCancel: (batchId: string, router: string) => void;
  onUnknown?: OnUnknown;
  trace?: Trace | null;
  /** Ends all links, and tells the routers that the worker stops. */
  stopping?: AbortSignal;
  log: Logger;
}

/** A welcome's answer to an offer of UCX; empty where there is none. */
type AboutUcx = Pick<LinkWelcomeInput, 'ucx' | 'ucxDeclined' | 'ucxMayPass'>;

type LinkStream = Duplex<RouterMessage, WorkerMessageInput>;

const helloMsMax = 5_000;

/** A router that ends its link ends both its ways; that of the stream may be heard a little later. */
const ucxGraceMs = 500;

/** The worker has not opened its model yet, or it stops. */
const orderlyCodes: ReadonlySet<ErrorCode> = new Set(['NOT_READY', 'DRAINING']);

/** Answers that may wait for a router that does not read, before nothing more is read from it. */
const answersQueuedMax = 64;

/** The worker's side of all links: takes the streams of routers. */
export function acceptLinks(options: LinkServiceOptions): Listener<RouterMessage, WorkerMessageInput> {
  const links = new Map<string, WorkerLink>();
  const windows = new LinkWindows(options);
  const refuseAll = () => {
    const error = new SwitchyardError('DRAINING', `worker ${options.worker} is stopping`);
    for (const link of links.values()) link.fail(error);
  };
  if (options.stopping) onAbort(options.stopping, refuseAll);
  return (stream, caller) => {
    try {
      new WorkerLink(options, stream, proofOf(caller, options), links, windows);
    } catch (error) {
      refuse(stream, error, options);
    }
  };
}

const { path } = services.Experts.Exchange;

/** Who calls, before anything else that they say is read. Throws UNAUTHENTICATED or PERMISSION_DENIED. */
function proofOf(
  { authorization, certificate }: Caller,
  { secret, worker, access }: LinkServiceOptions,
): LinkProof {
  if (!isLinkProof(authorization)) access.check(path, authorization, certificate);
  const proof = checkLink(String(authorization), secret, worker);
  checkNodeName(proof.router, certificate);
  return proof;
}

function refuse(stream: LinkStream, thrown: unknown, { log }: LinkServiceOptions): void {
  const error = asSwitchyardError(thrown);
  log.warn({ event: 'call-refused', method: path, peer: stream.peer, reason: error.message });
  stream.destroy(error);
}

class WorkerLink {
  private readonly writer: MessageWriter<WorkerMessageInput>;
  private readonly overGrpc: AnswerWay;
  /** The last that the router has offered. */
  private channel: WorkerChannel | null = null;
  private answersOffer = false;
  /** As the log has it. */
  private transport: TransportKind = 'grpc';
  /** From the welcome on. */
  private answers: Answers | null = null;
  private windowBytes = 0;
  /** Resolves when nothing of this link is in memory, nor of those that it replaced. */
  private readonly gone = new Deferred<void>();
  private replaced: Promise<void> | null = null;
  private readonly helloTimer: Timer;
  private ucxLost: Timer | null = null;
  private router: string | null = null;
  private halfClosed = false;
  private over = false;

  constructor(
    private readonly options: LinkServiceOptions,
    private readonly stream: LinkStream,
    private readonly proof: LinkProof,
    /** The open links of all routers; each router has one. */
    private readonly links: Map<string, WorkerLink>,
    private readonly windows: LinkWindows,
  ) {
    const { clock, rows } = options.runtime;
    this.writer = new MessageWriter(stream, rows, () => this.idle());
    this.overGrpc = { port: this.writer, lastExchange: 0 };
    this.helloTimer = clock.after(helloMsMax, () =>
      this.fail(new SwitchyardError('DEADLINE_EXCEEDED', `no hello within ${helloMsMax} ms`)),
    );
    const none = new Uint8Array(0);
    stream.listen({
      message: (message) =>
        this.receive(message, rowsOfMessage(message.tokens?.rows ?? none, rows), this.overGrpc, 0),
      end: () => {
        this.halfClosed = true;
        this.idle();
      },
      fail: () => this.close(),
    });
  }

  private receive(message: RouterMessage, rows: ArrivedRows, way: AnswerWay, metadataBytes: number): void {
    if (this.over || !message.tokens) dropRows(rows);
    if (this.over) return;
    try {
      if (message.hello && way instanceof WorkerChannel) this.hear(way);
      else if (message.hello) void this.open(message.hello).catch((error) => this.fail(error));
      else if (this.answers === null)
        throw invalidArgument('kind', message.kind ?? 'none', 'hello as the first message, then the welcome');
      else if (message.tokens) {
        this.answers.receive(message.tokens.meta, rows, metadataBytes, way);
        this.tellWay();
      } else if (message.cancel) this.answers.cancel(message.cancel.batchId);
      else if (message.offer) void this.answer(message.offer).catch((error) => this.fail(error));
      else this.options.onUnknown?.('link');
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
    this.helloTimer.cancel();
    // A router that connects anew has lost the old link, whether this side has noticed or not.
    const old = this.links.get(router) ?? null;
    old?.fail(new SwitchyardError('LINK_LOST', `router ${router} has connected anew`));
    this.links.set(router, this);
    this.router = router;
    // Its share of the slabs is this one's, once nothing of it is in memory.
    if (old !== null) {
      this.replaced = old.gone.promise;
      await this.replaced;
    }
    if (this.over) return;
    this.windowBytes = this.windows.take(router, old?.windowBytes);
    this.answers = this.createAnswers(router, hello, model.hidden);
    const aboutUcx = hello.ucx === null ? {} : await this.openUcx(hello);
    this.transport = this.channel === null ? 'grpc' : 'ucx';
    log.info({
      event: 'link-opened',
      router,
      transport: this.transport,
      reason: aboutUcx.ucxDeclined,
      windowBytes: this.windowBytes,
      ...(this.windowBytes < this.options.linkWindowBytes && { windowLimit: 'slabBytes' }),
    });
    this.sendWelcome(this.overGrpc, { ...aboutUcx, proof: this.proof.answer });
  }

  private createAnswers(router: string, { resultBytesMax }: LinkHello, hidden: number): Answers {
    const { worker, messageBytesMax, handler, onCancel, trace = null, runtime } = this.options;
    return new Answers({
      worker,
      router,
      hidden,
      messageBytesMax,
      resultBytesMax,
      windowBytes: this.windowBytes,
      handler,
      onCancel,
      trace,
      clock: runtime.clock,
      onSent: () => {
        if (this.writer.queued > answersQueuedMax) this.stream.pause();
      },
    });
  }

  private checkModel({ modelFingerprint }: LinkHello, allowed: string): void {
    if (modelFingerprint === allowed) return;
    const { worker } = this.options;
    const { router } = this.proof;
    const value = quoted(modelFingerprint);
    const text = `model_fingerprint of router ${router} is ${value}; worker ${worker} serves ${allowed}`;
    throw new SwitchyardError('MODEL_MISMATCH', text, { worker, value, allowed });
  }

  private sendWelcome({ port }: AnswerWay, also: LinkWelcomeInput): void {
    const { worker, messageBytesMax } = this.options;
    const welcome = { worker, creditBytes: this.windowBytes, messageBytesMax, ...also };
    port.send({ make: () => ({ welcome }), rows: null, done: () => {} });
  }

  /** Answers an offer of a router whose link is on gRPC: it has given up what it offered before. */
  private async answer(offer: LinkOffer): Promise<void> {
    if (this.answersOffer || this.channel?.used)
      throw invalidArgument('kind', 'offer', 'one at a time, of a router whose token batches come over gRPC');
    this.channel?.abandon();
    this.sayOfChannel(offer.ucx?.channel ?? 0, await this.openUcx(offer));
  }

  private sayOfChannel(channel: number, about: AboutUcx): void {
    this.writer.send({ make: () => ({ answer: { channel, ...about } }), rows: null, done: () => {} });
  }

  /** Takes or declines a router's offer of UCX. Token batches come there once the router has been heard there. */
  private async openUcx(offer: UcxOffer): Promise<AboutUcx> {
    const { ucx, transport, worker, host } = this.options;
    const acceptor = { ucx, host, transport, name: `worker ${worker}` };
    this.answersOffer = true;
    const answer = await acceptUcx(offer, acceptor, (ucx) => this.openChannel(ucx, offer));
    this.answersOffer = false;
    this.channel = answer.side;
    if (answer.side === null) return { ucxDeclined: answer.declined, ucxMayPass: answer.mayPass };
    if (this.over) answer.side.abandon();
    return { ucx: answer.side.end };
  }

  private openChannel(ucx: Fabric, { ucx: end, ucxKey: key }: UcxOffer): WorkerChannel {
    const port = this.options.ucx!.createPort<WorkerMessageInput, RouterMessage>(ucx, {
      codec: exchangeCodec.server,
      key,
      rowBytesMax: this.options.messageBytesMax,
      rowBytesInFlightMax: this.windowBytes,
      reportSends: Boolean(this.options.trace),
    });
    return new WorkerChannel(port, end!.channel, {
      onMessage: (channel, message, rows, metadataBytes) =>
        this.receive(message, rows, channel, metadataBytes),
      onFailure: (channel, error) => this.ucxFailed(channel, error),
    });
  }

  private ucxFailed(channel: WorkerChannel, error: SwitchyardError): void {
    if (error.code !== 'LINK_LOST') this.fail(error);
    else if (!this.over)
      this.ucxLost = this.options.runtime.clock.after(ucxGraceMs, () => this.lose(channel, error.message));
  }

  /** The link goes on without a channel on which no token batch has come; the router may be about to use it, and hears that it is gone. */
  private lose(channel: WorkerChannel, reason: string): void {
    if (channel !== this.channel) return;
    if (channel.used) {
      this.fail(ucxLoss(reason));
      return;
    }
    this.channel = null;
    channel.abandon();
    this.sayOfChannel(channel.number, { ucxDeclined: reason, ucxMayPass: true });
  }

  /** The router's hello has come over UCX. */
  private hear(channel: WorkerChannel): void {
    if (channel.heard) throw invalidArgument('kind', 'hello', 'one hello on a link');
    channel.heard = true;
    this.sendWelcome(channel, {});
  }

  /** Logs on what way token batches come, where it is not the one that the log has. */
  private tellWay(): void {
    const transport = this.channel?.used ? 'ucx' : 'grpc';
    if (transport === this.transport) return;
    this.transport = transport;
    this.options.log.info({ event: 'link-moved', router: this.router, transport });
  }

  /** Everything queued is sent. */
  private idle(): void {
    if (this.over) return;
    if (this.stream.paused) this.stream.resume();
    if (!this.halfClosed || (this.answers?.waiting ?? 0) > 0 || this.writer.queued > 0) return;
    this.close();
    this.stream.end();
  }

  /** Ends the link with an error that the router sees as its reason. */
  fail(thrown: unknown): void {
    if (this.over) return;
    const error = asSwitchyardError(thrown);
    const { code, message } = error;
    const level = orderlyCodes.has(code) ? 'info' : 'warn';
    this.options.log[level]({ event: 'link-failed', router: this.router, code, reason: message });
    this.close();
    this.stream.destroy(error);
  }

  private close(): void {
    if (this.over) return;
    this.over = true;
    this.helloTimer.cancel();
    this.ucxLost?.cancel();
    this.writer.destroy();
    this.channel?.abandon();
    void this.release();
    const { router } = this;
    if (router === null) return;
    this.options.log.info({ event: 'link-closed', router });
  }

  /** Gives the window back once nothing of the link is in memory; until then a new link of the router waits for it. */
  private async release(): Promise<void> {
    await Promise.all([this.answers?.end(), this.replaced]);
    this.windows.giveBack(this.windowBytes);
    const { router } = this;
    if (router !== null && this.links.get(router) === this) this.links.delete(router);
    this.gone.resolve();
  }
}
