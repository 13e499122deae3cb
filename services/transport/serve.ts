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
import { Answers } from './answers.js';
import { MessageWriter } from './grpc/writer.js';
import { acceptUcx } from './handshake.js';
import type { TokenBatchHandler, TransportChoice, TransportKind } from './link.js';
import { checkLink, isLinkProof, type LinkProof } from './link-key.js';
import { type ArrivedRows, dropRows, type MessagePort, type Outgoing, rowsOfMessage } from './port.js';
import type { UcxPort } from './ucx/port.js';
import { type Fabric, type UcxSource, ucxLoss } from './ucx/source.js';
import { LinkWindows } from './windows.js';

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
type AboutUcx = Pick<LinkWelcomeInput, 'ucx' | 'ucxDeclined'>;

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
  private port: MessagePort<WorkerMessageInput>;
  private ucx: UcxPort<WorkerMessageInput, RouterMessage> | null = null;
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
    this.port = this.writer;
    this.helloTimer = clock.after(helloMsMax, () =>
      this.fail(new SwitchyardError('DEADLINE_EXCEEDED', `no hello within ${helloMsMax} ms`)),
    );
    const none = new Uint8Array(0);
    stream.listen({
      message: (message) =>
        this.receive(message, rowsOfMessage(message.tokens?.rows ?? none, rows), 'grpc', 0),
      end: () => {
        this.halfClosed = true;
        this.idle();
      },
      fail: () => this.close(),
    });
  }

  private receive(
    message: RouterMessage,
    rows: ArrivedRows,
    over: TransportKind,
    metadataBytes: number,
  ): void {
    if (this.over || !message.tokens) dropRows(rows);
    if (this.over) return;
    try {
      if (message.hello && over === 'ucx') this.moveToUcx();
      else if (message.hello) void this.open(message.hello).catch((error) => this.fail(error));
      else if (this.answers === null)
        throw invalidArgument('kind', message.kind ?? 'none', 'hello as the first message, then the welcome');
      else if (message.tokens) this.answers.receive(message.tokens.meta, rows, metadataBytes);
      else if (message.cancel) this.answers.cancel(message.cancel.batchId);
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
    const aboutUcx = await this.openUcx(hello);
    log.info({
      event: 'link-opened',
      router,
      transport: this.ucx ? 'ucx' : 'grpc',
      reason: aboutUcx.ucxDeclined,
      windowBytes: this.windowBytes,
      ...(this.windowBytes < this.options.linkWindowBytes && { windowLimit: 'slabBytes' }),
    });
    this.sendWelcome({ ...aboutUcx, proof: this.proof.answer });
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
      send: (outgoing) => this.send(outgoing),
      withdraw: (outgoing) => this.port.withdraw(outgoing),
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

  private sendWelcome(also: LinkWelcomeInput): void {
    const { worker, messageBytesMax } = this.options;
    const welcome = { worker, creditBytes: this.windowBytes, messageBytesMax, ...also };
    this.port.send({ make: () => ({ welcome }), rows: null, done: () => {} });
  }

  /** Takes or declines a router's offer of UCX. Messages are sent there once the router has been heard there. */
  private async openUcx(hello: LinkHello): Promise<AboutUcx> {
    if (hello.ucx === null) return {};
    const { ucx, transport, worker, host } = this.options;
    const acceptor = { ucx, host, transport, name: `worker ${worker}` };
    const { side, declined } = await acceptUcx(hello, acceptor, (ucx) => this.ucxPort(ucx, hello.ucxKey));
    if (side === null) return { ucxDeclined: declined };
    this.ucx = side;
    if (this.over) side.abandon();
    return { ucx: side.end };
  }

  private ucxPort(ucx: Fabric, key: Uint8Array): UcxPort<WorkerMessageInput, RouterMessage> {
    const port = this.options.ucx!.createPort(ucx, {
      codec: exchangeCodec.server,
      key,
      rowBytesMax: this.options.messageBytesMax,
      rowBytesInFlightMax: this.windowBytes,
      reportSends: Boolean(this.options.trace),
    });
    port
      .receive((message, rows, metadataBytes) => this.receive(message, rows, 'ucx', metadataBytes))
      .catch((error) => this.ucxFailed(asSwitchyardError(error)));
    return port;
  }

  private ucxFailed(error: SwitchyardError): void {
    if (error.code !== 'LINK_LOST') this.fail(error);
    else if (!this.over)
      this.ucxLost = this.options.runtime.clock.after(ucxGraceMs, () => this.fail(ucxLoss(error.message)));
  }

  private moveToUcx(): void {
    if (this.ucx === null || this.port === this.ucx)
      throw invalidArgument('kind', 'hello', 'one hello on a link');
    this.port = this.ucx;
    this.sendWelcome({});
  }

  private send(outgoing: Outgoing<WorkerMessageInput>): void {
    this.port.send(outgoing);
    if (this.writer.queued > answersQueuedMax) this.stream.pause();
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
    this.ucx?.abandon();
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
