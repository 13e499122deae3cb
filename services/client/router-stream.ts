import { type ClientDuplexStream, type StatusObject, status } from '@grpc/grpc-js';
import { SwitchyardError } from '../common/errors.js';
import type { ForwardRequestInput } from '../common/generated/switchyard/v1/ForwardRequest.js';
import type { ForwardResponse } from '../common/generated/switchyard/v1/ForwardResponse.js';
import { Deferred } from '../common/lifecycle.js';
import { fromServiceError } from '../common/status.js';

/** One batch's call to one router. */
export class RouterStream {
  private readonly ended = new Deferred<StatusObject>();
  private over = false;

  constructor(
    /** host:port, for errors. */
    readonly router: string,
    private readonly call: ClientDuplexStream<ForwardRequestInput, ForwardResponse>,
  ) {
    call.on('status', (result: StatusObject) => {
      this.over = true;
      this.ended.resolve(result);
    });
    // The status says the same, and comes even when nobody reads.
    call.on('error', () => {});
  }

  /** Resolves when the stream can take the next message, or when the call is over (`responses` then tells why). */
  async send(message: ForwardRequestInput): Promise<void> {
    if (this.over || this.call.write(message)) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        this.call.off('drain', done).off('status', done);
        resolve();
      };
      this.call.on('drain', done).on('status', done);
    });
  }

  /** No more messages follow. */
  end(): void {
    this.call.end();
  }

  cancel(): void {
    this.call.cancel();
  }

  /** Everything the router answers. Throws what the call ended with, unless that is OK. */
  async *responses(): AsyncGenerator<ForwardResponse, void, void> {
    try {
      for await (const response of this.call as AsyncIterable<ForwardResponse>) yield response;
    } catch (error) {
      throw routerError(error, this.router);
    }
    const result = await this.ended.promise;
    if (result.code !== status.OK) throw routerError(result, this.router);
  }
}

/** What a call to a router failed with; a broken connection is the loss of that router. */
export function routerError(thrown: unknown, router: string): SwitchyardError {
  const error = fromServiceError(thrown);
  const reset = error.code === 'INTERNAL' && /RST_STREAM|ECONNRESET/.test(error.message);
  if (error.code !== 'LINK_LOST' && !reset) return error;
  const text = `router ${router} was lost: ${error.message}`;
  return new SwitchyardError('ROUTER_LOST', text, { router }, { cause: error });
}
