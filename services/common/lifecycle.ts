import { SwitchyardError } from './errors.js';

/** A promise that is settled from outside. Later settlements have no effect, as with any promise. */
export class Deferred<T> {
  readonly promise: Promise<T>;
  resolve!: (value: T | PromiseLike<T>) => void;
  reject!: (reason: unknown) => void;

  constructor() {
    this.promise = new Promise<T>((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }
}

/** Resolves after `ms` milliseconds; rejects with the signal's reason as soon as `signal` aborts. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    }, ms);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/** Settles as `promise` does, or rejects with the signal's reason as soon as `signal` aborts. */
export function abortable<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}

/**
 * Resolves with the first SIGINT or SIGTERM. A second one ends the process at once, so that an
 * operator can always cut an orderly shutdown short.
 */
export function untilSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    const onSignal = (signal: NodeJS.Signals) => {
      process.off('SIGINT', onSignal);
      process.off('SIGTERM', onSignal);
      resolve(signal);
    };
    process.on('SIGINT', onSignal);
    process.on('SIGTERM', onSignal);
  });
}

/** Why `signal` was aborted, as an error: its own SwitchyardError, DEADLINE_EXCEEDED of a timeout, or CANCELLED. */
export function abortError(signal: AbortSignal): SwitchyardError {
  const reason: unknown = signal.reason;
  if (reason instanceof SwitchyardError) return reason;
  const timedOut = reason instanceof DOMException && reason.name === 'TimeoutError';
  return timedOut
    ? new SwitchyardError('DEADLINE_EXCEEDED', 'the deadline has passed')
    : new SwitchyardError('CANCELLED', 'the operation was cancelled');
}

/** A started service, as the main.ts of each gives it. */
export interface Running {
  /** host:port of its gRPC server. */
  readonly address: string;
  /** http://host:port of /metrics, /healthz, /readyz and /state. */
  readonly metricsUrl: string;
  /** Resolves when the service has ended as asked; rejects with why it ended by itself. */
  readonly stopped: Promise<void>;
  /** Drains and ends. Resolves when all is closed. Idempotent. */
  stop(reason: string): Promise<void>;
}
