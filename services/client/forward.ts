import { constants } from 'node:buffer';
import { isFloat32Array, isUint8Array, isUint32Array } from 'node:util/types';
import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import type { ForwardHeaderInput } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardSummary } from '../common/generated/switchyard/v1/ForwardSummary.js';
import { Deferred, onAbort } from '../common/lifecycle.js';
import { memoryBound } from '../common/machine.js';
import { unpackFloat32, unpackUint32 } from '../common/packed.js';
import { TokenRanges } from '../common/token-ranges.js';
import { routingBytesOf } from '../transport/chunk-size.js';
import type { BatchStream } from './batch-stream.js';
import { merge } from './merge.js';
import { chunkRouting } from './options.js';
import type { RouterChunk } from './router-chunk.js';
import { locate, type Share, splitBatch, type TokenRun } from './share.js';
import { shown } from './shown.js';
import { fromInput, type RowsReader, StreamedRows } from './source.js';
import { type BatchSummary, mergeSummaries, type RouterSummary } from './summary.js';

/** Chosen experts (best first) and weights of consecutive tokens: [tokens, layers, topK]. */
export interface RoutingRows {
  experts: Uint32Array;
  weights: Float32Array;
}

/** Consecutive tokens of the batch that passed all layers. Chunks come in any order. */
export interface AnswerChunk {
  /** In tokens, from the start of the batch. */
  first: number;
  count: number;
  /** [count, hidden] BF16, little-endian, in memory of their own. */
  rows: Uint8Array;
  /** What was chosen, if the batch asked for it. */
  routing: RoutingRows | null;
}

/**
 * Where answers go: called once for every token, chunk by chunk, in any order, one call at a time. The rows are lent: they
 * are the sink's until its promise settles, and may be empty afterwards.
 */
export interface RowsSink {
  write(first: number, rows: Uint8Array, routing: RoutingRows | null): Promise<void> | void;
}

/** A router's answer, and which tokens of its share it is. */
interface ShareAnswer {
  answer: RouterChunk;
  share: Share;
  count: number;
}

/** The ids of all tokens of a batch in the vocabulary, or what gives those of `count` tokens from `first` on. */
export type TokenIds = Uint32Array | ((first: number, count: number) => Uint32Array | Promise<Uint32Array>);

export interface ForwardPlan {
  /** The header of the whole batch; each router gets it with its own number of sequences. */
  header: ForwardHeaderInput & { batchId: string; sequences: number; length: number; hidden: number };
  input: RowsReader | StreamedRows;
  given: ((first: number, count: number) => RoutingRows | Promise<RoutingRows>) | null;
  /** Null: tokens have none. */
  tokenIds: TokenIds | null;
  /** Tokens per chunk of the routers, as far as the client knows. */
  chunkTokens: number;
  /** Of what routes one token: given routing, or its id; 0 without. */
  routingBytes: number;
  routers: number;
  signal: AbortSignal | null;
  open(router: number): BatchStream;
}

const nowhere: RowsSink = { write: () => {} };

/**
 * A batch on its way. Its answers have one consumer: a loop over it, `into`, `collect`, or `summary`, which drops them. A
 * consumer that does not read stops the routers by back-pressure; one that leaves the loop early cancels the batch.
 */
export class ForwardCall implements AsyncIterable<AnswerChunk> {
  readonly batchId: string;
  private readonly shares: Share[];
  private readonly streams: BatchStream[];
  private readonly uploads: Promise<void>;
  private readonly answers: AsyncGenerator<ShareAnswer, void, void>;
  /** Who takes them. */
  private consumer: string | null = null;
  /** Answers that the loop which reads it waits for; null: no loop does. */
  private awaited: number | null = null;
  /** How often a loop has asked for an answer. */
  asked = 0;
  private readonly summaries: RouterSummary[] = [];
  private readonly outcome = new Deferred<BatchSummary>();
  private readonly startedMs = performance.now();
  private failure: Error | null = null;
  /** Ends the wait for the sink. */
  private interrupt: (error: Error) => void = () => {};
  private complete = false;

  /** Called by SwitchyardClient.forward. */
  constructor(private readonly plan: ForwardPlan) {
    const { header, input, signal } = plan;
    this.batchId = header.batchId;
    const streamed = input instanceof StreamedRows;
    const { shares, runs } = splitBatch(header.sequences, header.length, plan.routers, streamed);
    this.shares = shares;
    this.streams = shares.map((_, router) => plan.open(router));
    for (const stream of this.streams) void stream.failure.then((error) => this.fail(error));
    if (signal !== null) void this.ended.then(onAbort(signal, () => this.cancel()));
    // A stream is read in its own order; anything else in a lane per router.
    this.uploads = this.uploadAll(streamed ? [runs] : shares.map((share) => share.runs));
    this.answers = this.run();
  }

  /**
   * What the batch did, after its last answer. Rejects with the error that ended the batch, as soon as it is known. Without
   * a consumer by then, it takes the answers and drops them: for a batch that is sent for its summary alone.
   */
  get summary(): Promise<BatchSummary> {
    if (this.consumer === null) this.take('its summary', nowhere).catch(() => {});
    return this.outcome.promise;
  }

  /** Resolves when the batch is over, however it ended. */
  get ended(): Promise<void> {
    return this.outcome.promise.then(
      () => {},
      () => {},
    );
  }

  /** Whether somebody waits for its next answer. */
  get isRead(): boolean {
    return this.consumer !== null && this.awaited !== 0;
  }

  /** For `for await`. Throws INVALID_ARGUMENT if the answers have a consumer. */
  [Symbol.asyncIterator](): AsyncIterator<AnswerChunk> {
    const chunks = this.ownChunks(this.claim('a loop'));
    let awaited = 0;
    this.awaited = awaited;
    return {
      next: () => {
        this.awaited = ++awaited;
        this.asked += 1;
        return chunks.next().finally(() => {
          this.awaited = --awaited;
        });
      },
      return: () => {
        // First of all: an answer that the loop still waits for may never come.
        this.cancel();
        return chunks.return();
      },
    };
  }

  /** Takes all answers into `sink`, without a copy, and returns the summary. Rejects as a loop does, and as the sink does. */
  into(sink: RowsSink): Promise<BatchSummary> {
    return this.take('a sink', sink);
  }

  /** All answers in memory: [tokens, hidden] BF16 in the order of the batch. */
  async collect(): Promise<{ rows: Uint8Array; summary: BatchSummary }> {
    const { sequences, length, hidden } = this.plan.header;
    const bytes = sequences * length * hidden * 2;
    // Of an array alone newer versions of Node.js allow more than any machine has.
    const bytesMax = Math.min(constants.MAX_LENGTH, memoryBound().value);
    if (bytes > bytesMax) {
      const allowed = `at most ${bytesMax}; larger batches are for a loop or into()`;
      throw invalidArgument('bytes to collect', bytes, allowed);
    }
    const rows = new Uint8Array(bytes);
    const summary = await this.into({ write: (first, part) => rows.set(part, first * hidden * 2) });
    return { rows, summary };
  }

  /** Ends the batch on all routers: consumer and summary get CANCELLED, now. Does nothing for one that is over. */
  cancel(reason?: Error): void {
    const text = `batch ${this.batchId} was cancelled by the client${reason ? `: ${reason.message}` : ''}`;
    this.fail(new SwitchyardError('CANCELLED', text, {}, { cause: reason }));
  }

  /** Called by SwitchyardClient, too. The first failure is the batch's; what follows from it is not. */
  fail(error: Error): void {
    if (this.complete || this.failure !== null) return;
    this.failure = error;
    this.interrupt(error);
    for (const stream of this.streams) stream.cancel();
    this.outcome.reject(error);
  }

  /** Settles as `work` does, unless the batch ends before: a sink may never be through. */
  private orFailure(work: Promise<void>): Promise<void> {
    if (this.failure !== null) return Promise.reject(this.failure);
    return new Promise((resolve, reject) => {
      this.interrupt = reject;
      work.then(resolve, reject);
    });
  }

  private claim(consumer: string): AsyncGenerator<ShareAnswer, void, void> {
    if (this.consumer !== null)
      throw invalidArgument(
        `consumer of batch ${this.batchId}`,
        consumer,
        `one, and ${this.consumer} has taken the answers`,
      );
    this.consumer = consumer;
    return this.answers;
  }

  private async take(consumer: string, sink: RowsSink): Promise<BatchSummary> {
    try {
      if (typeof sink?.write !== 'function')
        throw invalidArgument('sink', shown(sink), 'an object with write');
    } catch (error) {
      // Nobody else is to take the answers, so the batch would wait for ever.
      if (this.consumer === null) this.fail(ownError(error));
      throw error;
    }
    for await (const { answer, share, count } of this.claim(consumer)) {
      this.checkTaken(answer);
      try {
        const lent = answer.lend(async (rows) => {
          for (const part of cut(share, count, answer, rows)) {
            if (this.failure === null) await sink.write(part.first, part.rows, part.routing);
          }
        });
        await this.orFailure(lent);
      } catch (error) {
        this.fail(ownError(error));
        throw error;
      }
    }
    return this.outcome.promise;
  }

  /** Answers whose rows are the consumer's for good. */
  private async *ownChunks(answers: AsyncIterable<ShareAnswer>): AsyncGenerator<AnswerChunk, void, void> {
    for await (const { answer, share, count } of answers) {
      this.checkTaken(answer);
      yield* cut(share, count, answer, await answer.own());
    }
  }

  /** Throws what ended the call if the rows went with it. */
  private checkTaken({ lost }: RouterChunk): void {
    if (lost === null) return;
    this.fail(lost);
    throw this.failure;
  }

  private async *run(): AsyncGenerator<ShareAnswer, void, void> {
    try {
      if (this.failure !== null) throw this.failure;
      yield* merge(this.streams.map((stream, index) => this.answersOf(stream, this.shares[index]!)));
      // A failure comes first: the input may be a stream that never yields again.
      await Promise.race([this.uploads, this.outcome.promise]);
      if (this.failure !== null) throw this.failure;
      this.complete = true;
      this.outcome.resolve(mergeSummaries(this.summaries, (performance.now() - this.startedMs) / 1000));
    } catch (error) {
      this.fail(asSwitchyardError(error));
      throw this.failure;
    } finally {
      // The consumer left early; otherwise the batch is over already.
      this.cancel();
    }
  }

  private async *answersOf(stream: BatchStream, share: Share): AsyncGenerator<ShareAnswer, void, void> {
    const { router } = stream;
    const seen = new TokenRanges();
    let answered = 0;
    let summary: ForwardSummary | null = null;
    for await (const { chunk, summary: last } of stream.answers()) {
      if (last !== null) summary = last;
      if (chunk === null) continue;
      const count = this.tokensOf(chunk, share, seen, router);
      answered += count;
      yield { answer: chunk, share, count };
    }
    if (!summary || answered !== share.tokens) {
      const got = `${answered} of ${share.tokens} tokens${summary ? '' : ' and no summary'}`;
      throw new SwitchyardError('DATA_LOSS', `router ${router} ended the batch after ${got}`, { router });
    }
    this.summaries.push({ ...summary, transport: stream.transport, lanes: stream.lanes });
  }

  /** The tokens of a chunk. Throws unless they are whole rows of the share, not answered before. */
  private tokensOf(
    { chunk: { offset }, rowBytes: bytes }: RouterChunk,
    share: Share,
    seen: TokenRanges,
    router: string,
  ): number {
    const count = bytes / (this.plan.header.hidden * 2);
    const fits = Number.isInteger(count) && count > 0 && offset + count <= share.tokens;
    if (!fits || !seen.take(offset, offset + count)) {
      const text = `router ${router} answered ${bytes} bytes at token ${offset}: not whole rows, or not its to answer`;
      throw new SwitchyardError('DATA_LOSS', text, { router, offset, bytes });
    }
    return count;
  }

  private async uploadAll(lanes: readonly TokenRun[][]): Promise<void> {
    try {
      const { header, input } = this.plan;
      await Promise.all(
        this.streams.map((stream, router) =>
          stream.open({ ...header, sequences: this.shares[router]!.sequences }),
        ),
      );
      await Promise.all(lanes.map((lane) => this.upload(lane)));
      if (input instanceof StreamedRows && !this.failure) await fromInput(() => input.expectEnd());
      // To the routers an end that comes before the last token is a mistake, and not the cancel that follows.
      if (this.failure === null) await Promise.all(this.streams.map((stream) => stream.end()));
    } catch (error) {
      this.fail(asSwitchyardError(error));
    } finally {
      await this.closeInput();
    }
  }

  private async closeInput(): Promise<void> {
    try {
      await fromInput(() => this.plan.input.close?.());
    } catch (error) {
      this.fail(asSwitchyardError(error));
    }
  }

  private async upload(lane: readonly TokenRun[]): Promise<void> {
    const { chunkTokens, routingBytes, header } = this.plan;
    for (const run of lane) {
      const stream = this.streams[run.router]!;
      const tokensMax = stream.chunkTokens(header.hidden * 2, routingBytes, chunkTokens);
      for (let done = 0; done < run.count && !this.failure; done += tokensMax) {
        const count = Math.min(tokensMax, run.count - done);
        if (!(await this.sendTokens(stream, run.offset + done, run.first + done, count))) return;
      }
    }
  }

  private async givenRouting(first: number, count: number): Promise<RoutingRows | null> {
    const { given } = this.plan;
    if (given === null) return null;
    const routing = await this.fromCaller(() => given(first, count));
    return this.failure === null ? checkRouting(routing!) : null;
  }

  private async tokenIds(first: number, count: number): Promise<Uint32Array | null> {
    const { tokenIds } = this.plan;
    if (tokenIds === null || isUint32Array(tokenIds)) return tokenIds?.subarray(first, first + count) ?? null;
    const ids = await this.fromCaller(() => tokenIds(first, count));
    if (this.failure !== null || (isUint32Array(ids) && ids.length === count)) return ids;
    const seen = isUint32Array(ids) ? `${ids.length} ids` : shown(ids);
    throw invalidArgument(`what tokenIds gave at token ${first}`, seen, `a Uint32Array of ${count} ids`);
  }

  /** What a function of the caller gives. What it throws ends the batch as it is; then null. */
  private async fromCaller<T>(give: () => T | Promise<T>): Promise<T | null> {
    try {
      return await give();
    } catch (error) {
      this.fail(ownError(error));
      return null;
    }
  }

  /** Sends tokens of the batch, `first` and following, as those from `offset` of a share on; false: the call is over. */
  private async sendTokens(
    stream: BatchStream,
    offset: number,
    first: number,
    count: number,
  ): Promise<boolean> {
    const { input, header } = this.plan;
    const given = await this.givenRouting(first, count);
    const tokenIds = await this.tokenIds(first, count);
    if (this.failure !== null) return false;
    const chunk = { offset, ...chunkRouting(given, tokenIds) };
    const bytes = count * header.hidden * 2;
    // Room comes first: then what is read and not yet sent is one chunk, however slow the router is.
    if (!(await stream.reserve(bytes, routingBytesOf(chunk)))) return false;
    if (stream.transport === 'ucx' && 'readSlab' in input && input.readSlab) {
      const slab = await fromInput(() => input.readSlab!(first, count));
      try {
        return await stream.send(chunk, { slab, byteOffset: 0, byteLength: bytes });
      } finally {
        slab.release();
      }
    }
    const rows = await fromInput(() => input.read(first, count));
    if (!isUint8Array(rows) || rows.byteLength !== bytes) {
      const seen = isUint8Array(rows) ? `${rows.byteLength} bytes` : shown(rows);
      throw invalidArgument(`what input.read gave at token ${first}`, seen, `a Uint8Array of ${bytes} bytes`);
    }
    return stream.send(chunk, rows);
  }
}

/** What `given` or a sink throws is the caller's own: it ends the batch as it is. */
function ownError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : asSwitchyardError(thrown);
}

/** Throws INVALID_ARGUMENT for what is no routing; whether it has the right size is the router's to tell. */
function checkRouting(routing: RoutingRows): RoutingRows {
  if (isUint32Array(routing?.experts) && isFloat32Array(routing.weights)) return routing;
  const allowed =
    'an object with experts, a Uint32Array, and weights, a Float32Array, each of [tokens, layers, topK]';
  throw invalidArgument('what given gave', shown(routing), allowed);
}

/** A router's chunk as parts of the batch: a share may be made of several runs. */
function* cut(
  share: Share,
  count: number,
  { chunk }: RouterChunk,
  rows: Uint8Array,
): Generator<AnswerChunk, void, void> {
  let from = 0;
  for (const { first, count: tokens } of locate(share, chunk.offset, count)) {
    const part = (bytes: Uint8Array) => {
      const perToken = bytes.byteLength / count;
      return bytes.subarray(from * perToken, (from + tokens) * perToken);
    };
    const routing =
      chunk.experts.byteLength > 0
        ? { experts: unpackUint32(part(chunk.experts)), weights: unpackFloat32(part(chunk.weights)) }
        : null;
    yield { first, count: tokens, rows: part(rows), routing };
    from += tokens;
  }
}
