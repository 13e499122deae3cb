import type { SlabRange } from '../../native/index.js';
import { asSwitchyardError, type ErrorCode, type SwitchyardError } from '../common/errors.js';
import type { ChunkInput } from '../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeaderInput } from '../common/generated/switchyard/v1/ForwardHeader.js';
import { Deferred } from '../common/lifecycle.js';
import type { TransportKind } from '../transport/link.js';
import { allFailed, type Failure } from './all-failed.js';
import type { BatchStream, RouterAnswer } from './batch-stream.js';
import type { RouterStream } from './router-stream.js';

export interface RedirectedStreamOptions {
  first: RouterStream;
  /** A call to a router that is none of these (host:port). Rejects if there is none. */
  another: (tried: ReadonlySet<string>) => Promise<RouterStream>;
}

/** What a router that ends, or has ended, says of a batch that it has not begun. */
const endingCodes: ReadonlySet<ErrorCode> = new Set(['DRAINING', 'ROUTER_LOST']);

/** A batch's call to the first router that takes it: one that ends refuses the header, and then no row was read. */
export class RedirectedStream implements BatchStream {
  private current: RouterStream;
  private readonly failed = new Deferred<SwitchyardError>();
  private readonly opened = new Deferred<void>();
  private cancelled = false;

  constructor(private readonly options: RedirectedStreamOptions) {
    this.current = options.first;
  }

  get router(): string {
    return this.current.router;
  }

  get transport(): TransportKind {
    return this.current.transport;
  }

  get lanes(): string {
    return this.current.lanes;
  }

  get failure(): Promise<SwitchyardError> {
    return this.failed.promise;
  }

  /** Rejects as `RouterStream.open` does, with what the routers said if none takes the batch. */
  async open(header: ForwardHeaderInput): Promise<void> {
    try {
      await this.openFirst(header);
      void this.current.failure.then((error) => this.failed.resolve(error));
    } catch (error) {
      // Said before the answers of the last router can end with its own refusal alone.
      this.failed.resolve(asSwitchyardError(error));
      throw error;
    } finally {
      this.opened.resolve();
    }
  }

  private async openFirst(header: ForwardHeaderInput): Promise<void> {
    const startedMs = performance.now();
    const tried = new Set<string>();
    const refusals: Failure[] = [];
    for (let sent = header; ; ) {
      try {
        return await this.current.open(sent);
      } catch (thrown) {
        const error = asSwitchyardError(thrown);
        if (this.cancelled || !endingCodes.has(error.code)) throw error;
        refusals.push({ address: this.router, error });
      }
      tried.add(this.router);
      const other = await this.options.another(tried).catch(() => null);
      if (other === null) throw allFailed(refusals);
      this.current = other;
      if (this.cancelled) other.cancel();
      // The other may have a share of the same batch under way, by the same name.
      sent = { ...header, batchId: '', deadlineMs: leftOf(header.deadlineMs, startedMs) };
    }
  }

  chunkTokens(rowBytes: number, routingBytes: number, wished: number): number {
    return this.current.chunkTokens(rowBytes, routingBytes, wished);
  }

  reserve(rowBytes: number, routingBytes: number): Promise<boolean> {
    return this.current.reserve(rowBytes, routingBytes);
  }

  send(chunk: ChunkInput, rows: Uint8Array | SlabRange): Promise<boolean> {
    return this.current.send(chunk, rows);
  }

  end(): Promise<void> {
    return this.current.end();
  }

  cancel(): void {
    this.cancelled = true;
    this.current.cancel();
  }

  async *answers(): AsyncGenerator<RouterAnswer, void, void> {
    await this.opened.promise;
    yield* this.current.answers();
  }
}

/** What is left of a deadline since `startedMs`, at least 1; 0: there is none. */
function leftOf(deadlineMs: number | undefined, startedMs: number): number {
  return deadlineMs ? Math.max(1, Math.ceil(deadlineMs - (performance.now() - startedMs))) : 0;
}
