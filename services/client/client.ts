import { randomInt, randomUUID } from 'node:crypto';
import type { CallOptions, Metadata } from '@grpc/grpc-js';
import { parseAddress } from '../common/address.js';
import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import type { ClusterDescription } from '../common/generated/switchyard/v1/ClusterDescription.js';
import type { ClusterState } from '../common/generated/switchyard/v1/ClusterState.js';
import type { InferenceClient } from '../common/generated/switchyard/v1/Inference.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { Credential } from '../common/grpc-channel.js';
import { abortable, abortError, Deferred, onAbort } from '../common/lifecycle.js';
import { LiveList } from '../common/live.js';
import { Tls } from '../common/tls.js';
import { tokenIdBytes, usualChunkTokens } from '../transport/chunk-size.js';
import type { TransportChoice } from '../transport/link.js';
import { allFailed, type Failure } from './all-failed.js';
import { checkOptions, checkTokenIds } from './check-options.js';
import { Connections } from './connections.js';
import { ForwardCall, type ForwardPlan, type TokenIds } from './forward.js';
import { type BatchOptions, deadlineGraceMs, protocolLayers, protocolOptions } from './options.js';
import { RedirectedStream } from './redirected-stream.js';
import { RouterStream, routerError } from './router-stream.js';
import { openRouters, type ReachedRouter, reachRouters, whyNotReady } from './routers.js';
import { Session, type SessionOptions } from './session.js';
import { sessionOpener } from './session-opener.js';
import { type SessionOpener, SessionRouters } from './session-routers.js';
import { SmallBatches } from './small-batches.js';
import { checkInput, type ForwardInput, keepError, openInput, StreamedRows } from './source.js';
import { UnreachableByUcx } from './ucx.js';
import { ClusterWatch } from './watch.js';

/** PEM files, which are read anew when they change. */
export interface TlsOptions {
  /** Who signs the certificates of the cluster's servers. */
  ca: string;
  /** A certificate to show, with those between it and its CA, and its key. Default: none. */
  cert?: string | null | undefined;
  key?: string | null | undefined;
  /** Rows to and from routers on other hosts may travel over UCX as they are, if routers allow it too. Default: no. */
  allowPlaintextRows?: boolean | undefined;
}

export interface ConnectOptions {
  /** Bearer token of the cluster; null: none. */
  token?: string | null;
  /** Connections are encrypted; null, the default: they are not. */
  tls?: TlsOptions | null;
  /** How long each address may take to answer. */
  timeoutMs?: number;
  /**
   * How rows travel to and from routers. `auto`, the default: UCX where both ends have it and reach each other by it,
   * otherwise gRPC. `ucx`: UCX, or batches end with LINK_LOST. `grpc`: gRPC.
   */
  transport?: TransportChoice;
}

export interface ForwardOptions extends BatchOptions {
  /** Which tensor of a .safetensors input. Default: its only one. */
  tensor?: string;
  /** Default: as the input's shape says, otherwise one sequence of all tokens. A batch is split over routers by sequences. */
  sequences?: number;
  /** Tokens per sequence. Default: the input's tokens / sequences, so bytes tell nothing of rows of another size. */
  length?: number;
  /** The experts and weights of the tokens asked for, instead of gating; reads ascend within a router's share. */
  given?: NonNullable<ForwardPlan['given']>;
  /** For layers that choose experts by them, or have isolated ones; a function's reads ascend within a router's share. */
  tokenIds?: TokenIds;
  /** Default: the connection's. */
  transport?: TransportChoice;
  signal?: AbortSignal;
  /** Use only this many routers, those on the client's own host first. Default: all that are ready. */
  routers?: number;
}

const noRouter = 'no router takes batches: none has joined, or all are leaving';
/** How long `close` waits for who reads the answers of a batch: as long as routers do that nobody has told otherwise. */
const unreadMsMax = 30_000;
/** How long a batch waits for news while no server tells any: then it goes on with the routers known. */
const refreshMsMax = 1_000;

/**
 * A connection to a cluster. It watches the cluster at one of the addresses given or at a router that it learned, whichever
 * answers, and sends batches to the routers themselves; alone it keeps no process alive. Errors are SwitchyardErrors.
 */
export class SwitchyardClient {
  private readonly watch: ClusterWatch;
  private readonly connections: Connections;
  private readonly unreachableByUcx = new UnreachableByUcx();
  private readonly live = new LiveList<ForwardCall>();
  private readonly sessions = new Set<Session>();
  private readonly small = new SmallBatches((transport) => this.openerFor(transport));
  private readonly over = new AbortController();
  /** Once it is closed: resolves when no batch is under way. */
  private allEnded: Promise<void> | null = null;
  private turn = randomInt(1 << 20);

  private constructor(
    readonly addresses: readonly string[],
    private readonly credential: Credential,
    private readonly timeoutMs: number,
    private readonly transport: TransportChoice,
  ) {
    this.connections = new Connections(credential, timeoutMs);
    const onState = (state: ClusterState) => this.forgetOthers(state);
    this.watch = new ClusterWatch({ addresses, credential, timeoutMs, onState });
  }

  /**
   * Connects by the address of the coordinator or of any router, or by several of them, any of which may be down. Throws
   * INVALID_ARGUMENT for what is not host:port, NOT_READY if nothing answers, UNAUTHENTICATED for a wrong token or certificate, and where the server's is
   * not trusted, CONFIG_INVALID for files of TLS that cannot be used; the cluster may
   * still be loading.
   */
  static async connect(
    addresses: string | readonly string[],
    options: ConnectOptions = {},
  ): Promise<SwitchyardClient> {
    checkOptions('connect', options);
    const { token = null, tls: files = null, timeoutMs = 5_000, transport = 'auto' } = options;
    const given = [...new Set([addresses].flat().map((address) => parseAddress(address)))];
    if (given.length === 0) throw invalidArgument('addresses', '[]', 'one or more');
    const tls = files && new Tls(files);
    const client = new SwitchyardClient(given, { token, tls }, timeoutMs, transport);
    try {
      await client.watch.start();
      return client;
    } catch (error) {
      tls?.close();
      throw error;
    }
  }

  /** Members and readiness, as of now; with `placement` also where every expert is. */
  async describeCluster(options: { placement?: boolean } = {}): Promise<ClusterDescription> {
    checkOptions('describeCluster', options);
    const { placement = false } = options;
    return this.describe<ClusterDescription>((inference, options, done) =>
      inference.describeCluster({ placement }, options, done),
    );
  }

  async describeModel(): Promise<ModelDescription> {
    return this.describe<ModelDescription>((inference, options, done) =>
      inference.describeModel({}, options, done),
    );
  }

  /**
   * Resolves when every expert is on a live worker and `routers` routers are ready; rejects with NOT_READY and the reason
   * after `timeoutMs`.
   */
  async waitUntilReady(timeoutMs: number, routers = 1, signal?: AbortSignal): Promise<void> {
    this.over.signal.throwIfAborted();
    checkOptions('waitUntilReady', { timeoutMs, routers, signal });
    const late = new AbortController();
    // Unlike the watch it keeps the process alive.
    const timer = setTimeout(() => {
      const reason = whyNotReady(this.watch.state, routers);
      late.abort(notReady(`the cluster is not ready after ${timeoutMs} ms`, reason));
    }, timeoutMs);
    const forget = signal && onAbort(signal, () => late.abort(signal.reason));
    try {
      await this.watch.until((state) => whyNotReady(state, routers) === '', late.signal);
    } finally {
      clearTimeout(timer);
      forget?.();
    }
  }

  /**
   * Sends a batch through the model's layers. Iterate what it returns, or take it with `into` or `collect`. While the
   * cluster is not ready the routers hold the batch, up to its deadline and their own patience; it then ends with
   * DEADLINE_EXCEEDED or NOT_READY. What a router that is stopping refuses goes to another one. Rejects with NOT_READY at once if
   * there is no router, or none that can be reached, and with CANCELLED after `close` or `destroy`.
   */
  async forward(input: ForwardInput, options: ForwardOptions = {}): Promise<ForwardCall> {
    this.over.signal.throwIfAborted();
    checkOptions('forward', options);
    checkInput(input);
    keepError(input);
    const { transport = this.transport } = options;
    const startedMs = performance.now();
    const state = await this.knownState(options);
    const routers = openRouters(state);
    if (routers.length === 0) throw notReady('the cluster is not ready', noRouter);
    const { hidden, layers, routing } = state.model!;
    const { source, sequences, length } = await openInput(input, hidden, options);
    try {
      const wanted = Math.min(options.routers ?? routers.length, sequences);
      // Clients start at different routers, so that batches of few sequences spread as well.
      const reaching = reachRouters(routers, this.connections, wanted, this.turn++);
      const reached = await this.unlessOver(reaching, options);
      const spentMs = Math.floor(performance.now() - startedMs);
      const deadlineMs = options.deadlineMs ? Math.max(1, options.deadlineMs - spentMs) : 0;
      const callOptions: CallOptions =
        deadlineMs > 0 ? { deadline: Date.now() + deadlineMs + deadlineGraceMs } : {};
      const givenBytes = options.given ? layers.length * (routing?.topK ?? 1) * 8 : 0;
      const routingBytes = givenBytes + (options.tokenIds ? tokenIdBytes : 0);
      const tokens = sequences * length;
      checkTokenIds(options.tokenIds, tokens);
      const bytes = tokens * (hidden * 2 + routingBytes);
      const call = new ForwardCall({
        header: {
          batchId: options.batchId ?? randomUUID(),
          sequences,
          length,
          hidden,
          dtype: 'BF16',
          ...protocolLayers(options),
          options: protocolOptions(options, options.given !== undefined),
          deadlineMs,
          traceparent: options.traceparent ?? '',
        },
        input: source,
        given: options.given ?? null,
        tokenIds: options.tokenIds ?? null,
        chunkTokens: options.chunkTokens || usualChunkTokens(hidden * 2),
        routingBytes,
        routers: reached.length,
        signal: options.signal ?? null,
        open: (index) => {
          const router = reached[index]!;
          const state = () => this.watch.state!;
          if (!(source instanceof StreamedRows) && this.small.fits(tokens, bytes, router.messageBytesMax))
            return this.small.stream(router, transport, state);
          const streamTo = (one: ReachedRouter) => this.streamTo(one, transport, callOptions);
          const another = async (tried: ReadonlySet<string>) => {
            const others = openRouters(state()).filter(({ address }) => !tried.has(address));
            if (others.length === 0) throw notReady('the cluster is not ready', noRouter);
            return streamTo((await reachRouters(others, this.connections, 1, this.turn++))[0]!);
          };
          return new RedirectedStream({ first: streamTo(router), another });
        },
      });
      void call.ended.then(this.live.add(call));
      return call;
    } catch (error) {
      await source.close?.();
      throw error;
    }
  }

  /**
   * A session: many batches of 1 to 1,024 tokens, one after the other and at once, over one stream to each router. Its streams
   * are opened by the first batches. Throws CANCELLED after `close` or `destroy`.
   */
  session(options: SessionOptions = {}): Session {
    this.over.signal.throwIfAborted();
    checkOptions('session', options);
    const { transport = this.transport } = options;
    const routers = new SessionRouters({
      routers: options.routers ?? null,
      ...this.openerFor(transport),
    });
    const session: Session = new Session({
      state: () => this.knownState({}),
      router: (state, tried) => routers.pick(state, tried),
      end: (reason) => {
        routers.end(reason);
        this.sessions.delete(session);
      },
    });
    this.sessions.add(session);
    return session;
  }

  /**
   * Takes no new batches, and ends the connections when those under way have ended: their answers are still to be taken. When nobody has asked
   * for answers of any that is left for 30 s, it ends them with CLIENT_STALLED, as a router would, and a warning of the process; until then it
   * keeps the process alive. Idempotent; `destroy` cuts it short.
   */
  async close(): Promise<void> {
    this.over.abort(new SwitchyardError('CANCELLED', 'the client was closed'));
    const sessions = [...this.sessions].map((session) => session.close());
    this.allEnded ??= this.untilEnded();
    await Promise.all([...sessions, this.allEnded]);
    this.disconnect();
  }

  /** Resolves when no batch is under way. */
  private async untilEnded(): Promise<void> {
    while (this.live.size > 0) {
      const calls = this.live.values();
      const asked = () => calls.reduce((sum, call) => sum + call.asked, 0);
      const askedBefore = asked();
      const late = new Deferred<void>();
      // It keeps the process alive: a batch whose answers nobody reads does not.
      const timer = setTimeout(() => {
        // While one is read, the turn of the others may come.
        if (asked() === askedBefore && !calls.some(({ isRead }) => isRead)) endUnread(calls);
        late.resolve();
      }, unreadMsMax);
      await Promise.race([late.promise, ...calls.map((call) => call.ended)]);
      clearTimeout(timer);
    }
  }

  /** `await using` closes the client. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Ends all batches under way with CANCELLED, and the connections, now. Idempotent. */
  destroy(error?: Error): void {
    const reason = error ?? new Error('the client was destroyed');
    this.over.abort(new SwitchyardError('CANCELLED', 'the client was destroyed', {}, { cause: error }));
    for (const session of this.sessions) session.destroy(reason);
    for (const call of this.live.values()) call.cancel(reason);
    this.disconnect();
  }

  /** The latest state, which has a model. */
  private async knownState({ deadlineMs }: { deadlineMs?: number }): Promise<ClusterState> {
    this.over.signal.throwIfAborted();
    if (!this.watch.told) await this.watch.refresh(Math.min(refreshMsMax, deadlineMs || refreshMsMax));
    const { state } = this.watch;
    if (!state?.model) throw notReady('the cluster is not known yet', whyNotReady(state, 1));
    return state;
  }

  private streamTo(
    { address, messageBytesMax, inference }: ReachedRouter,
    transport: TransportChoice,
    options: CallOptions,
  ): RouterStream {
    return new RouterStream({
      router: address,
      call: inference.forward(options),
      transport,
      encrypted: this.credential.tls?.encryptsRows ?? false,
      messageBytesMax,
      unreachable: this.unreachableByUcx,
    });
  }

  /** What opens the streams of sessions. */
  private openerFor(transport: TransportChoice): SessionOpener {
    const { connections, credential, unreachableByUcx: unreachable } = this;
    return sessionOpener({ connections, credential, unreachable }, transport);
  }

  /** Settles as `work` does, unless the batch's deadline, its signal or the end of the client comes first. */
  private async unlessOver<T>(work: Promise<T>, { deadlineMs, signal }: ForwardOptions): Promise<T> {
    const end = new AbortController();
    const text = `the deadline of ${deadlineMs} ms has passed before a router was reached`;
    const timer = deadlineMs
      ? setTimeout(() => end.abort(new SwitchyardError('DEADLINE_EXCEEDED', text)), deadlineMs)
      : undefined;
    // One that has aborted before ends the call, once there is one.
    const signals = signal?.aborted === false ? [this.over.signal, signal] : [this.over.signal];
    const forgets = signals.map((one) => onAbort(one, () => end.abort(abortError(one))));
    try {
      const done = await abortable(work, end.signal);
      this.over.signal.throwIfAborted();
      return done;
    } finally {
      clearTimeout(timer);
      for (const forget of forgets) forget();
    }
  }

  private disconnect(): void {
    this.watch.end(this.over.signal.reason);
    this.small.end(this.over.signal.reason);
    this.connections.retain(new Set());
    this.credential.tls?.close();
  }

  /** What was kept of servers that are neither given nor in the state is given up: a client may outlive many routers. */
  private forgetOthers({ routers }: ClusterState): void {
    const known = new Set([...this.addresses, ...routers.map(({ address }) => address)]);
    this.connections.setNames(new Map(routers.map(({ address, name }) => [address, name])));
    this.connections.retain(known);
    this.unreachableByUcx.retain(known);
  }

  /** Asks one server after the other until one answers; throws what each of them failed with. */
  private async describe<T>(call: DescribeCall<T>): Promise<T> {
    this.over.signal.throwIfAborted();
    const failures: Failure[] = [];
    for (const address of this.watch.servers()) {
      try {
        const inference = await this.connections.to(address, true);
        return await new Promise<T>((resolve, reject) => {
          call(inference, { deadline: Date.now() + this.timeoutMs }, (error, value) => {
            if (value !== undefined) resolve(value);
            else reject(routerError(error, address));
          });
        });
      } catch (error) {
        failures.push({ address, error: asSwitchyardError(error) });
      }
    }
    throw allFailed(failures);
  }
}

type DescribeCall<T> = (
  inference: InferenceClient,
  options: CallOptions & { metadata?: Metadata },
  done: (error: Error | null, value?: T) => void,
) => void;

function notReady(text: string, reason: string): SwitchyardError {
  return new SwitchyardError('NOT_READY', `${text}: ${reason}`, { reason });
}

/** Ends the batches whose answers nobody reads. */
function endUnread(calls: readonly ForwardCall[]): void {
  for (const call of calls) {
    const text = `nobody has asked for answers of batch ${call.batchId} within ${unreadMsMax} ms of close()`;
    const error = new SwitchyardError('CLIENT_STALLED', text, { batch: call.batchId });
    process.emitWarning(error.message, { type: 'SwitchyardWarning', code: error.code });
    call.fail(error);
  }
}
