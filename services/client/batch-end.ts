import { SwitchyardError } from '../common/errors.js';
import { End } from '../common/lifecycle.js';
import { deadlineGraceMs } from './options.js';

/** What ends a batch of a session at this end: whoever aborts it, and its deadline. */
export class BatchEnd extends End {
  /** 0: none. */
  private deadlineMs = 0;
  private expiresAtMs = 0;
  private timer: NodeJS.Timeout | undefined;

  /** Gives it a deadline, from now on; 0: none. To be cleared once the batch is over. */
  limit(deadlineMs: number): void {
    this.deadlineMs = deadlineMs;
    this.expiresAtMs = performance.now() + deadlineMs;
    this.waits();
  }

  /** No router has the batch, or none any more: this end keeps its deadline. */
  waits(): void {
    this.expire(this.expiresAtMs, 'before a router had the batch');
  }

  /** The batch leaves for a router, which then keeps the deadline. Returns the milliseconds left to it, at least 1; 0: there is no deadline. */
  leaves(): number {
    if (this.deadlineMs === 0) return 0;
    this.expire(this.expiresAtMs + deadlineGraceMs, 'and the router did not say so');
    return Math.max(1, Math.ceil(this.expiresAtMs - performance.now()));
  }

  clear(): void {
    clearTimeout(this.timer);
  }

  private expire(atMs: number, how: string): void {
    this.clear();
    if (this.deadlineMs === 0 || this.aborted) return;
    const text = `the deadline of ${this.deadlineMs} ms has passed ${how}`;
    const end = () => this.abort(new SwitchyardError('DEADLINE_EXCEEDED', text));
    this.timer = setTimeout(end, atMs - performance.now());
  }
}
