import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeaderInput } from '../common/generated/switchyard/v1/ForwardHeader.js';
import { Deferred, onAbort } from '../common/lifecycle.js';
import type { TransportKind } from '../transport/link.js';
import { BatchEnd } from './batch-end.js';
import type { BatchStream, RouterAnswer } from './batch-stream.js';
import { RouterChunk } from './router-chunk.js';
import type { SessionOutput } from './router-session.js';
import { type ChooseRouter, sendToOne } from './send-to-one.js';

export interface SessionStreamOptions {
  /** host:port */
  router: string;
  /** The stream of a session, to this router as long as it is not among those tried. */
  choose: ChooseRouter;
}

/** A small batch as one message of a session, which stands between batches. */
export class SessionStream implements BatchStream {
  transport: TransportKind = 'grpc';
  lanes = 'http2';
  private readonly over = new BatchEnd();
  private readonly output = new Deferred<SessionOutput>();
  private header: ForwardHeaderInput = {};

  constructor(private readonly options: SessionStreamOptions) {
    onAbort(this.over, () => this.output.reject(this.over.reason));
    this.output.promise.catch(() => {}).finally(() => this.over.clear());
  }

  get router(): string {
    return this.options.router;
  }

  get failure(): Promise<SwitchyardError> {
    return new Promise((resolve) => this.output.promise.catch(resolve));
  }

  async open(header: ForwardHeaderInput): Promise<void> {
    this.header = header;
    this.over.limit(header.deadlineMs ?? 0);
  }

  /** All of them. */
  chunkTokens(): number {
    return Number.POSITIVE_INFINITY;
  }

  async reserve(): Promise<boolean> {
    return !this.over.aborted;
  }

  /** The whole batch. */
  async send({ offset: _all, rows: _beside, ...routing }: ChunkInput, rows: Uint8Array): Promise<boolean> {
    try {
      const input = { header: this.header, rows, routing };
      this.output.resolve(await sendToOne(this.options.choose, input, this.over));
      return true;
    } catch (error) {
      this.output.reject(asSwitchyardError(error));
      return false;
    }
  }

  async end(): Promise<void> {}

  cancel(): void {
    this.over.abort(new SwitchyardError('CANCELLED', 'the batch was cancelled'));
  }

  async *answers(): AsyncGenerator<RouterAnswer, void, void> {
    const { parts, summary } = await this.output.promise;
    for (const part of parts) yield { chunk: new RouterChunk(part, null), summary: null };
    this.transport = summary.transport;
    this.lanes = summary.lanes;
    yield { chunk: null, summary };
  }
}
