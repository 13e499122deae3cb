import { setMaxListeners } from 'node:events';
import type { ServerDuplexStream } from '@grpc/grpc-js';
import { SwitchyardError } from '../common/errors.js';
import type { ForwardRequest } from '../common/generated/switchyard/v1/ForwardRequest.js';
import type { ForwardResponseInput } from '../common/generated/switchyard/v1/ForwardResponse.js';
import { Deferred } from '../common/lifecycle.js';
import { toServiceError } from '../common/status.js';

export type ForwardStream = ServerDuplexStream<ForwardRequest, ForwardResponseInput>;

const timerMsMax = 2 ** 31 - 1;

/**
 * A client's Forward call. `signal` ends everything that works for it: when the client cancels or is gone, when a
 * deadline passes, when it stops reading, or by `abort`. Its reason is a SwitchyardError, the first one that came.
 */
export class ClientStream {
  /** Unix milliseconds at which the call ends; 0: never. */
  deadlineMs = 0;
  private readonly controller = new AbortController();
  private readonly timers: NodeJS.Timeout[] = [];
  private woken = new Deferred<void>();
  private ended = false;
  private lastSend: Promise<void> = Promise.resolve();

  constructor(
    private readonly call: ForwardStream,
    /** A client that takes no answer for so long has stalled. */
    readonly stallMs: number,
  ) {
    setMaxListeners(0, this.signal);
    const wake = () => this.wake();
    call.on('readable', wake);
    call.on('end', () => {
      this.ended = true;
      wake();
    });
    call.on('cancelled', () => this.cancelled());
    this.signal.addEventListener('abort', wake, { once: true });
    if (call.cancelled) this.cancelled();
    const deadline = Number(call.getDeadline());
    if (Number.isFinite(deadline)) this.limit(deadline - Date.now());
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  get peer(): string {
    return this.call.getPeer();
  }

  /** The first error stays. */
  abort(error: SwitchyardError): void {
    if (!this.signal.aborted) this.controller.abort(error);
  }

  /** Ends the call with DEADLINE_EXCEEDED after `ms` milliseconds. The soonest of several limits counts. */
  limit(ms: number): void {
    const deadlineMs = Date.now() + ms;
    if (this.deadlineMs === 0 || deadlineMs < this.deadlineMs) this.deadlineMs = deadlineMs;
    const expire = () =>
      this.abort(new SwitchyardError('DEADLINE_EXCEEDED', 'the deadline of the batch passed'));
    this.timers.push(setTimeout(expire, Math.min(Math.max(ms, 0), timerMsMax)));
  }

  /**
   * The next message; null once the client has half-closed. Nothing is read ahead beyond one message.
   * A client that sends nothing for `waitMs` has stalled; null: it may take its time.
   */
  async next(waitMs: number | null): Promise<ForwardRequest | null> {
    const stalled = waitMs === null ? undefined : setTimeout(() => this.abort(sendsNothing(waitMs)), waitMs);
    try {
      for (;;) {
        this.signal.throwIfAborted();
        const message = this.call.read() as ForwardRequest | null;
        if (message !== null) return message;
        if (this.ended) return null;
        await this.woken.promise;
      }
    } finally {
      clearTimeout(stalled);
    }
  }

  /** Sends one message after the other; resolves when it is on its way to the client. */
  send(response: ForwardResponseInput): Promise<void> {
    const sent = this.lastSend.then(() => this.write(response));
    this.lastSend = sent.catch(() => {});
    return sent;
  }

  /** Ends the call well. */
  finish(): void {
    this.clear();
    this.call.end();
  }

  /** Ends the call with an error. A client that stalled learns of it when it reads again. */
  fail(error: SwitchyardError): void {
    this.clear();
    this.abort(error);
    this.call.emit('error', toServiceError(error));
  }

  private clear(): void {
    for (const timer of this.timers) clearTimeout(timer);
  }

  private wake(): void {
    this.woken.resolve();
    this.woken = new Deferred();
  }

  private cancelled(): void {
    const deadline = Number(this.call.getDeadline());
    const error =
      Date.now() >= deadline
        ? new SwitchyardError('DEADLINE_EXCEEDED', 'the deadline of the call passed')
        : new SwitchyardError('CANCELLED', 'the client cancelled the call or is gone');
    this.abort(error);
  }

  private async write(response: ForwardResponseInput): Promise<void> {
    this.signal.throwIfAborted();
    const stalled = setTimeout(() => {
      this.abort(takesNothing(this.stallMs));
    }, this.stallMs);
    // The callback never comes if the stream ends meanwhile, so the signal ends the wait too.
    const written = new Deferred<void>();
    const onAbort = () => written.reject(this.signal.reason);
    this.signal.addEventListener('abort', onAbort, { once: true });
    try {
      this.call.write(response, () => written.resolve());
      await written.promise;
    } finally {
      clearTimeout(stalled);
      this.signal.removeEventListener('abort', onAbort);
    }
  }
}

function takesNothing(stallMs: number): SwitchyardError {
  const message = `the client has taken no answer for ${stallMs} ms`;
  return new SwitchyardError('CLIENT_STALLED', message, { stallMs });
}

function sendsNothing(stallMs: number): SwitchyardError {
  const message = `the client has sent nothing for ${stallMs} ms; expected: a header first, half-close after the last token`;
  return new SwitchyardError('CLIENT_STALLED', message, { stallMs });
}
