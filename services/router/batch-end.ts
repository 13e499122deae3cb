import { SwitchyardError } from '../common/errors.js';
import { End, type EndSignal, sleepOn } from '../common/lifecycle.js';
import type { Clock, Timer } from '../runtime/clock.js';

const timerMsMax = 2 ** 31 - 1;
const cancelMs = 100;

/**
 * A client that cancels its call ends its half of it first, so a half-close that comes too early waits for what may follow. Rejects with the signal's
 * reason if that does.
 */
export const cancelMayFollow = (clock: Clock, signal: EndSignal): Promise<void> =>
  sleepOn(clock, cancelMs, signal);

/** What ends a batch before it is complete: the first `abort`, or the soonest of its deadlines. */
export class BatchEnd {
  /** When it ends, on the clock's `now`; Infinity: never. */
  deadlineMs = Number.POSITIVE_INFINITY;
  /** Ends everything that works for the batch. Its reason is a SwitchyardError, the first one that came. */
  readonly signal = new End();
  private timer: Timer | null = null;

  constructor(private readonly clock: Clock) {}

  /** The first error stays. */
  abort(error: SwitchyardError): void {
    this.signal.abort(error);
  }

  /** Ends the batch with DEADLINE_EXCEEDED after `ms` milliseconds. The soonest of several limits counts. */
  limit(ms: number): void {
    const deadlineMs = this.clock.now() + ms;
    if (deadlineMs >= this.deadlineMs) return;
    this.deadlineMs = deadlineMs;
    this.timer?.cancel();
    const expire = () =>
      this.abort(new SwitchyardError('DEADLINE_EXCEEDED', 'the deadline of the batch passed'));
    this.timer = this.clock.after(Math.min(Math.max(ms, 0), timerMsMax), expire);
  }

  /** No deadline ends it any more. */
  clear(): void {
    this.timer?.cancel();
  }
}
