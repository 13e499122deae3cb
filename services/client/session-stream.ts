import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeaderInput } from '../common/generated/switchyard/v1/ForwardHeader.js';
import { Deferred, End } from '../common/lifecycle.js';
import type { TransportKind } from '../transport/link.js';
import type { BatchStream, RouterAnswer } from './batch-stream.js';
import { deadlineGraceMs } from './options.js';
import { RouterChunk } from './router-chunk.js';
import { type ChooseRouter, type SessionOutput, sendToOne } from './router-session.js';

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
  private readonly over = new End();
  private readonly output = new Deferred<SessionOutput>();
  private header: ForwardHeaderInput = {};
  /** As performance.now(); Infinity: none. */
  private deadlineMs = Number.POSITIVE_INFINITY;
  private timer: NodeJS.Timeout | undefined;

  constructor(private readonly options: SessionStreamOptions) {
    this.output.promise.catch(() => {}).finally(() => clearTimeout(this.timer));
  }

  get router(): string {
    return this.options.router;
  }

  get failure(): Promise<SwitchyardError> {
    return new Promise((resolve) => this.output.promise.catch(resolve));
  }

  async open(header: ForwardHeaderInput): Promise<void> {
    this.header = header;
    const { deadlineMs } = header;
    if (!deadlineMs) return;
    this.deadlineMs = performance.now() + deadlineMs;
    this.failAt(this.deadlineMs, `the deadline of ${deadlineMs} ms has passed before the batch was read`);
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
      const input = { header: this.sentHeader(), rows, routing };
      this.output.resolve(await sendToOne(this.options.choose, input, this.over));
      return true;
    } catch (error) {
      this.output.reject(asSwitchyardError(error));
      return false;
    }
  }

  async end(): Promise<void> {}

  cancel(): void {
    this.fail(new SwitchyardError('CANCELLED', 'the batch was cancelled'));
  }

  async *answers(): AsyncGenerator<RouterAnswer, void, void> {
    const { parts, summary } = await this.output.promise;
    for (const part of parts) yield { chunk: new RouterChunk(part, null), summary: null };
    this.transport = summary.transport;
    this.lanes = summary.lanes;
    yield { chunk: null, summary };
  }

  /** With what is left of the deadline. From now on the router ends the batch, or, should it not do that, this end. */
  private sentHeader(): ForwardHeaderInput {
    const { header, deadlineMs } = this;
    if (!header.deadlineMs) return header;
    const text = `the deadline of ${header.deadlineMs} ms has passed, and the router did not say so`;
    this.failAt(deadlineMs + deadlineGraceMs, text);
    return { ...header, deadlineMs: Math.max(1, Math.ceil(deadlineMs - performance.now())) };
  }

  private failAt(ms: number, text: string): void {
    clearTimeout(this.timer);
    const expire = () => this.fail(new SwitchyardError('DEADLINE_EXCEEDED', text));
    this.timer = setTimeout(expire, ms - performance.now());
  }

  private fail(reason: SwitchyardError): void {
    this.over.abort(reason);
    this.output.reject(reason);
  }
}
