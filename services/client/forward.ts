import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import type { ForwardHeaderInput } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardSummary } from '../common/generated/switchyard/v1/ForwardSummary.js';
import { Deferred } from '../common/lifecycle.js';
import { packFloat32, packUint32, unpackFloat32, unpackUint32 } from '../common/packed.js';
import { merge } from './merge.js';
import type { RouterChunk } from './router-chunk.js';
import type { RouterStream } from './router-stream.js';
import { locate, type Share, splitBatch, type TokenRun } from './share.js';
import { type RowsReader, StreamedRows } from './source.js';
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

export interface ForwardPlan {
  /** The header of the whole batch; each router gets it with its own number of sequences. */
  header: ForwardHeaderInput & { batchId: string; sequences: number; length: number; hidden: number };
  input: RowsReader | StreamedRows;
  given: ((first: number, count: number) => RoutingRows | Promise<RoutingRows>) | null;
  /** Tokens per chunk of the routers, as far as the client knows. */
  chunkTokens: number;
  /** Of one token's given routing; 0 without. */
  routingBytes: number;
  routers: number;
  signal: AbortSignal | null;
  open(router: number): RouterStream;
}

/**
 * A batch on its way. Iterate it once to take the answers: a consumer that does not read stops the
 * routers by back-pressure, one that leaves the loop early cancels the batch. `summary` settles after the last answer.
 */
export class ForwardCall implements AsyncIterable<AnswerChunk> {
  readonly batchId: string;
  private readonly shares: Share[];
  private readonly streams: RouterStream[];
  private readonly uploads: Promise<void>;
  private readonly answers: AsyncGenerator<ShareAnswer, void, void>;
  private readonly chunks: AsyncGenerator<AnswerChunk, void, void>;
  private readonly summaries: RouterSummary[] = [];
  private readonly outcome = new Deferred<BatchSummary>();
  private readonly startedMs = performance.now();
  private failure: SwitchyardError | null = null;

  /** Called by SwitchyardClient.forward. */
  constructor(private readonly plan: ForwardPlan) {
    const { header, input, signal } = plan;
    this.batchId = header.batchId;
    const streamed = input instanceof StreamedRows;
    const { shares, runs } = splitBatch(header.sequences, header.length, plan.routers, streamed);
    this.shares = shares;
    this.streams = shares.map((_, router) => plan.open(router));
    if (signal?.aborted) this.cancel();
    signal?.addEventListener('abort', this.cancel, { once: true });
    // Who only iterates sees the failure there; it must not end the process a second time.
    this.outcome.promise.catch(() => {});
    // A stream is read in its own order; anything else in a lane per router.
    this.uploads = this.uploadAll(streamed ? [runs] : shares.map((share) => share.runs));
    this.answers = this.run();
    this.chunks = this.ownChunks();
  }

  /** What the batch did. Rejects with the error that ended it. */
  get summary(): Promise<BatchSummary> {
    return this.outcome.promise;
  }

  [Symbol.asyncIterator](): AsyncIterator<AnswerChunk> {
    return this.chunks;
  }

  /** Takes all answers into `sink`, without a copy, and returns the summary. */
  async into(sink: RowsSink): Promise<BatchSummary> {
    for await (const { answer, share, count } of this.answers) {
      this.checkTaken(answer);
      await answer.lend(async (rows) => {
        for (const part of cut(share, count, answer, rows)) {
          await sink.write(part.first, part.rows, part.routing);
        }
      });
    }
    return this.summary;
  }

  /** All answers in memory: [tokens, hidden] BF16 in the order of the batch. */
  async collect(): Promise<{ rows: Uint8Array; summary: BatchSummary }> {
    const { sequences, length, hidden } = this.plan.header;
    const rows = new Uint8Array(sequences * length * hidden * 2);
    const summary = await this.into({ write: (first, part) => rows.set(part, first * hidden * 2) });
    return { rows, summary };
  }

  /** Ends the batch on all routers; the iteration throws CANCELLED. */
  readonly cancel = (): void => {
    this.fail(new SwitchyardError('CANCELLED', `batch ${this.batchId} was cancelled by the client`));
  };

  /** The first failure is the batch's; what follows from it is not. */
  private fail(error: SwitchyardError): void {
    this.failure ??= error;
    for (const stream of this.streams) stream.cancel();
  }

  /** Answers whose rows are the consumer's for good. */
  private async *ownChunks(): AsyncGenerator<AnswerChunk, void, void> {
    for await (const { answer, share, count } of this.answers) {
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
    let complete = false;
    try {
      yield* merge(this.streams.map((stream, index) => this.answersOf(stream, this.shares[index]!)));
      complete = true;
    } catch (error) {
      this.fail(asSwitchyardError(error));
    } finally {
      if (!complete) this.cancel();
      this.plan.signal?.removeEventListener('abort', this.cancel);
      const closed = this.uploads.then(() => this.plan.input.close?.());
      closed.catch((error) => this.fail(asSwitchyardError(error)));
      // After a failure nobody waits for the input: it may be a stream that never yields again.
      if (!this.failure) await closed.catch(() => {});
      if (this.failure) this.outcome.reject(this.failure);
    }
    if (this.failure) throw this.failure;
    this.outcome.resolve(mergeSummaries(this.summaries, (performance.now() - this.startedMs) / 1000));
  }

  private async *answersOf(stream: RouterStream, share: Share): AsyncGenerator<ShareAnswer, void, void> {
    const { router } = stream;
    const seen = new Uint8Array(share.tokens);
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
    seen: Uint8Array,
    router: string,
  ): number {
    const count = bytes / (this.plan.header.hidden * 2);
    const fits = Number.isInteger(count) && count > 0 && offset + count <= share.tokens;
    if (!fits || seen.subarray(offset, offset + count).includes(1)) {
      const text = `router ${router} answered ${bytes} bytes at token ${offset}: not whole rows, or not its to answer`;
      throw new SwitchyardError('DATA_LOSS', text, { router, offset, bytes });
    }
    seen.fill(1, offset, offset + count);
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
      if (input instanceof StreamedRows && !this.failure) await input.expectEnd();
      await Promise.all(this.streams.map((stream) => stream.end()));
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

  /** Sends tokens of the batch, `first` and following, as those from `offset` of a share on; false: the call is over. */
  private async sendTokens(
    stream: RouterStream,
    offset: number,
    first: number,
    count: number,
  ): Promise<boolean> {
    const { input, given, header } = this.plan;
    const routing = given ? await given(first, count) : null;
    const chunk = {
      offset,
      ...(routing && { experts: packUint32(routing.experts), weights: packFloat32(routing.weights) }),
    };
    const bytes = count * header.hidden * 2;
    // Room comes first: then what is read and not yet sent is one chunk, however slow the router is.
    const routingBytes = (chunk.experts?.byteLength ?? 0) + (chunk.weights?.byteLength ?? 0);
    if (!(await stream.reserve(bytes, routingBytes))) return false;
    if (stream.transport === 'ucx' && 'readSlab' in input && input.readSlab) {
      const slab = await input.readSlab(first, count);
      try {
        return await stream.send(chunk, { slab, byteOffset: 0, byteLength: bytes }, header.hidden);
      } finally {
        slab.release();
      }
    }
    const rows = await input.read(first, count);
    if (rows.byteLength !== bytes) {
      throw invalidArgument(`bytes read at token ${first}`, rows.byteLength, `${bytes}`);
    }
    return stream.send(chunk, rows, header.hidden);
  }
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
