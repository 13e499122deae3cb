import { invalidArgument, overLimit, SwitchyardError } from '../common/errors.js';
import { abortError, type EndSignal, onAbort } from '../common/lifecycle.js';
import { LiveList } from '../common/live.js';

interface Waiter {
  bytes: number;
  grant: () => void;
  refuse: (error: Error) => void;
}

/**
 * Bytes that may be outstanding on a link. They are granted in the order of the requests: a large request
 * is never overtaken forever by small ones. What is outstanding lies between 0 and the capacity.
 */
export class Credits {
  private readonly waiters = new LiveList<Waiter>();
  private taken = 0;
  private closedBy: Error | null = null;

  /** `source`: the setting and node that draw the capacity, for errors. */
  constructor(
    readonly capacity: number,
    private readonly source: { setting: string; node: string },
  ) {
    if (!Number.isSafeInteger(capacity) || capacity <= 0) {
      throw invalidArgument('credit_bytes', capacity, 'a whole number above 0');
    }
  }

  get outstanding(): number {
    return this.taken;
  }

  get waiting(): number {
    return this.waiters.size;
  }

  /**
   * Resolves when `bytes` are granted. Rejects with TOO_LARGE when they never could be, with the signal's
   * reason when it aborts first, and with the error of `close`.
   */
  acquire(bytes: number, signal: EndSignal): Promise<void> {
    if (this.closedBy) return Promise.reject(this.closedBy);
    if (signal.aborted) return Promise.reject(abortError(signal));
    if (!Number.isSafeInteger(bytes) || bytes < 0) {
      return Promise.reject(invalidArgument('bytes', bytes, 'a whole number'));
    }
    if (bytes > this.capacity) {
      return Promise.reject(overLimit('TOO_LARGE', 'bytes of credit', bytes, this.capacity, this.source));
    }
    if (this.waiters.size === 0 && this.fits(bytes)) {
      this.taken += bytes;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => this.enqueue(bytes, signal, resolve, reject));
  }

  /** Gives back what was granted, whole or in parts. */
  release(bytes: number): void {
    if (bytes < 0 || bytes > this.taken) {
      throw new SwitchyardError('INTERNAL', `released ${bytes} bytes of credit; outstanding: ${this.taken}`);
    }
    this.taken -= bytes;
    this.grantNext();
  }

  /** Rejects all that wait and all requests to come. What is outstanding can still be released. */
  close(error: Error): void {
    this.closedBy ??= error;
    for (const waiter of this.waiters.values()) waiter.refuse(this.closedBy);
  }

  private fits(bytes: number): boolean {
    return this.taken + bytes <= this.capacity;
  }

  private enqueue(
    bytes: number,
    signal: EndSignal,
    resolve: () => void,
    reject: (error: Error) => void,
  ): void {
    const leave = () => {
      remove();
      forget();
    };
    const waiter: Waiter = {
      bytes,
      grant: () => {
        leave();
        this.taken += bytes;
        resolve();
      },
      refuse: (error) => {
        leave();
        reject(error);
      },
    };
    const forget = onAbort(signal, () => {
      waiter.refuse(abortError(signal));
      // The one that left may have kept smaller ones behind it from being granted.
      this.grantNext();
    });
    const remove = this.waiters.add(waiter);
  }

  private grantNext(): void {
    for (let waiter = this.waiters.first; waiter !== undefined; waiter = this.waiters.first) {
      if (!this.fits(waiter.bytes)) return;
      waiter.grant();
    }
  }
}
