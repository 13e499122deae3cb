/** Milliseconds. */
export interface Clock {
  /** Monotonic; its zero means nothing, and other processes have another. */
  now(): number;
  /** Since 1970, as this host believes: it may jump, and other hosts believe something else. */
  wall(): number;
  /** Runs once, not before `ms` have passed. */
  after(ms: number, run: () => void): Timer;
  /** Runs again and again; for the first time after at most `ms`. */
  every(ms: number, run: () => void): Timer;
  /** Runs once, when what has arrived already has been handled. */
  soon(run: () => void): Timer;
}

export interface Timer {
  /** It runs no more. Idempotent. */
  cancel(): void;
  /** It does not keep the process alive. */
  unref(): Timer;
}
