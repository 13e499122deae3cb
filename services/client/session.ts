import { isUint8Array } from 'node:util/types';
import { invalidArgument, SwitchyardError } from '../common/errors.js';
import type { ClusterState } from '../common/generated/switchyard/v1/ClusterState.js';
import { abortable, abortError, Deferred, End, onAbort } from '../common/lifecycle.js';
import { unpackFloat32, unpackUint32 } from '../common/packed.js';
import { sessionTokensMax } from '../transport/chunk-size.js';
import type { TransportChoice } from '../transport/link.js';
import { BatchEnd } from './batch-end.js';
import { checkOptions, checkTokenIds } from './check-options.js';
import type { RoutingRows } from './forward.js';
import { type BatchOptions, chunkRouting, protocolLayers, protocolOptions } from './options.js';
import type { RouterSession, SessionOutput } from './router-session.js';
import { sendToOne } from './send-to-one.js';
import { shown } from './shown.js';
import { type BatchSummary, mergeSummaries } from './summary.js';

export interface SessionOptions {
  /** How rows travel. Default: the connection's. */
  transport?: TransportChoice;
  /** Use only this many routers, those on the client's own host first. Default: all that are ready. */
  routers?: number;
}

export interface SessionBatchOptions extends BatchOptions {
  /** The experts and weights of the tokens, instead of gating: [tokens, layers, topK]. */
  given?: RoutingRows;
  /** The tokens' ids in the vocabulary, [tokens]: for layers that choose experts by them, or have isolated ones. */
  tokenIds?: Uint32Array;
  signal?: AbortSignal;
}

/** A batch that has passed all layers. */
export interface SessionResult {
  /** [tokens, hidden] BF16, little-endian, in memory of their own. */
  rows: Uint8Array;
  /** What was chosen, if the batch asked for it. */
  routing: RoutingRows | null;
  summary: BatchSummary;
}

/** What a session needs of its client. */
export interface SessionHost {
  /** What is known of the cluster, its model included. Rejects with NOT_READY if that is nothing, and once the client is closed. */
  state(): Promise<ClusterState>;
  /** The stream for the next batch, to a router that is none of those tried (host:port). */
  router(state: ClusterState, tried: ReadonlySet<string>): Promise<RouterSession>;
  /** Ends all streams. */
  end(reason: SwitchyardError): void;
}

/**
 * Many small batches, one after the other and at once, over one stream to each router: nothing is described, dialled or
 * negotiated for a batch, and a batch that fails ends nothing else. When a router is lost, the batches under way on it reject
 * with ROUTER_LOST, and later ones go to another. Errors are SwitchyardErrors.
 */
export class Session {
  private readonly over = new AbortController();
  private readonly destroyed = new End();
  private live = 0;
  /** Resolved when it is over and no batch is under way. */
  private readonly idle = new Deferred<void>();
  private closing: Promise<void> | null = null;

  /** Called by SwitchyardClient.session. */
  constructor(private readonly host: SessionHost) {}

  /**
   * Sends a batch of 1 to 1,024 tokens, [tokens, hidden] BF16, through the model's layers, as soon as the session has room for
   * it: its routers allow 64 batches under way each. The rows must not be written to until the promise settles. Rejects with
   * INVALID_ARGUMENT, with what the batch failed with, with the signal's reason, and with CANCELLED after `close` or `destroy`.
   */
  async forward(rows: Uint8Array, options: SessionBatchOptions = {}): Promise<SessionResult> {
    this.over.signal.throwIfAborted();
    checkOptions('sessionBatch', options);
    if (!isUint8Array(rows)) throw invalidArgument('rows', shown(rows), 'a Uint8Array');
    this.live += 1;
    try {
      return await this.run(rows, options);
    } finally {
      this.live -= 1;
      if (this.live === 0 && this.over.signal.aborted) this.idle.resolve();
    }
  }

  /** Takes no new batches, and ends the streams when those under way have ended. Idempotent; `destroy` cuts it short. */
  close(): Promise<void> {
    this.closing ??= this.drain();
    return this.closing;
  }

  /** `await using` closes the session. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Ends all batches under way with CANCELLED, and the streams, now. Idempotent. */
  destroy(error?: Error): void {
    const reason = new SwitchyardError('CANCELLED', 'the session was destroyed', {}, { cause: error });
    this.over.abort(reason);
    this.host.end(reason);
    this.destroyed.abort(reason);
  }

  private async drain(): Promise<void> {
    this.over.abort(new SwitchyardError('CANCELLED', 'the session was closed'));
    if (this.live > 0) await this.idle.promise;
    this.host.end(this.over.signal.reason);
  }

  /** Whatever the batch waits for, its signal, its deadline and `destroy` end it. */
  private async run(rows: Uint8Array, options: SessionBatchOptions): Promise<SessionResult> {
    const { signal, deadlineMs = 0 } = options;
    const end = new BatchEnd();
    end.limit(deadlineMs);
    const signals = signal === undefined ? [this.destroyed] : [this.destroyed, signal];
    const forgets = signals.map((one) => onAbort(one, () => end.abort(abortError(one))));
    try {
      return await this.send(rows, options, end);
    } finally {
      end.clear();
      for (const forget of forgets) forget();
    }
  }

  private async send(rows: Uint8Array, options: SessionBatchOptions, end: BatchEnd): Promise<SessionResult> {
    const startedMs = performance.now();
    const state = await abortable(this.host.state(), end);
    const { hidden } = state.model!;
    const tokens = tokensOf(rows, hidden);
    checkTokenIds(options.tokenIds, tokens);
    const { given } = options;
    const input = {
      header: {
        batchId: options.batchId ?? '',
        sequences: 1,
        length: tokens,
        hidden,
        dtype: 'BF16' as const,
        ...protocolLayers(options),
        options: protocolOptions(options, given !== undefined),
        traceparent: options.traceparent ?? '',
      },
      rows,
      routing: chunkRouting(given, options.tokenIds),
    };
    const choose = async (tried: ReadonlySet<string>) =>
      this.host.router(tried.size === 0 ? state : await this.host.state(), tried);
    const output = await sendToOne(choose, input, end);
    return resultOf(output, tokens, hidden, (performance.now() - startedMs) / 1000);
  }
}

function tokensOf(rows: Uint8Array, hidden: number): number {
  const rowBytes = hidden * 2;
  const tokens = rows.byteLength / rowBytes;
  if (Number.isInteger(tokens) && tokens >= 1 && tokens <= sessionTokensMax) return tokens;
  const allowed = `1 to ${sessionTokensMax} rows of ${rowBytes} bytes (${hidden} BF16); larger batches are for SwitchyardClient.forward`;
  throw invalidArgument('rows', `${rows.byteLength} bytes`, allowed);
}

/** The parts side by side. Throws DATA_LOSS unless they are every token once. */
function resultOf(
  { parts, summary }: SessionOutput,
  tokens: number,
  hidden: number,
  seconds: number,
): SessionResult {
  const ordered = parts.length > 1 ? [...parts].sort((a, b) => a.offset - b.offset) : parts;
  let next = 0;
  for (const { offset, rows } of ordered) {
    const count = rows.byteLength / (hidden * 2);
    if (offset !== next || !Number.isInteger(count) || count < 1) break;
    next += count;
  }
  if (next !== tokens) {
    const text = `router ${summary.router} answered other tokens than the ${tokens} of the batch`;
    throw new SwitchyardError('DATA_LOSS', text, { router: summary.router });
  }
  const join = (field: 'rows' | 'experts' | 'weights') =>
    ordered.length === 1 ? ordered[0]![field] : Buffer.concat(ordered.map((part) => part[field]));
  const experts = join('experts');
  const routing =
    experts.byteLength > 0
      ? { experts: unpackUint32(experts), weights: unpackFloat32(join('weights')) }
      : null;
  return { rows: join('rows'), routing, summary: mergeSummaries([summary], seconds) };
}
