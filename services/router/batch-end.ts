import { SwitchyardError } from '../common/errors.js';
import { End } from '../common/lifecycle.js';

const timerMsMax = 2 ** 31 - 1;

/** What ends a batch before it is complete: the first `abort`, or the soonest of its deadlines. */
export class BatchEnd {
  /** When it ends, as performance.now(); Infinity: never. */
  deadlineMs = Number.POSITIVE_INFINITY;
  /** Ends everything that works for the batch. Its reason is a SwitchyardError, the first one that came. */
  readonly signal = new End();
  private timer: NodeJS.Timeout | undefined;

  /** The first error stays. */
  abort(error: SwitchyardError): void {
    this.signal.abort(error);
  }

  /** Ends the batch with DEADLINE_EXCEEDED after `ms` milliseconds. The soonest of several limits counts. */
  limit(ms: number): void {
    const deadlineMs = performance.now() + ms;
    if (deadlineMs >= this.deadlineMs) return;
    this.deadlineMs = deadlineMs;
    clearTimeout(this.timer);
    const expire = () =>
      this.abort(new SwitchyardError('DEADLINE_EXCEEDED', 'the deadline of the batch passed'));
    this.timer = setTimeout(expire, Math.min(Math.max(ms, 0), timerMsMax));
  }

  /** No deadline ends it any more. */
  clear(): void {
    clearTimeout(this.timer);
  }
}
