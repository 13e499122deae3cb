import type { Clock } from '../runtime/clock.js';
import { systemClock } from '../runtime/system.js';
import { SwitchyardError } from './errors.js';
import { LiveList } from './live.js';

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

/** What is to be called once, but for what is taken back meanwhile. */
class Calls extends LiveList<() => void> {
  run(): void {
    for (let call = this.shift(); call !== undefined; call = this.shift()) call();
  }
}

/** As an AbortController and its signal, for less: every batch has one. */
export class End {
  /** Why it came; undefined: it did not. */
  reason: Error | undefined;
  private readonly calls = new Calls();

  get aborted(): boolean {
    return this.reason !== undefined;
  }

  throwIfAborted(): void {
    if (this.reason !== undefined) throw this.reason;
  }

  /** The first reason stays. */
  abort(reason: Error): void {
    if (this.reason !== undefined) return;
    this.reason = reason;
    this.calls.run();
  }

  /** For onAbort alone. */
  listen(call: () => void): () => void {
    return this.calls.add(call);
  }
}

/** What ends work that is under way. */
export type EndSignal = AbortSignal | End;

/** The one listener of a signal: it may be a user's, who would be told of a leak from eleven on. */
class AbortListener {
  private static readonly bySignal = new WeakMap<AbortSignal, AbortListener>();
  private readonly calls = new Calls();
  private readonly callAll = () => this.calls.run();

  private constructor(private readonly signal: AbortSignal) {}

  static of(signal: AbortSignal): AbortListener {
    const known = AbortListener.bySignal.get(signal);
    if (known !== undefined) return known;
    const made = new AbortListener(signal);
    AbortListener.bySignal.set(signal, made);
    return made;
  }

  add(call: () => void): () => void {
    if (this.calls.size === 0) this.signal.addEventListener('abort', this.callAll, { once: true });
    const remove = this.calls.add(call);
    return () => {
      remove();
      if (this.calls.size === 0) this.signal.removeEventListener('abort', this.callAll);
    };
  }
}

/**
 * Calls `run` once, when the signal aborts; at once if it has. Returns what takes that back. However many wait for a signal,
 * it gets one listener.
 */
export function onAbort(signal: EndSignal, run: () => void): () => void {
  if (signal.aborted) {
    run();
    return () => {};
  }
  return signal instanceof End ? signal.listen(run) : AbortListener.of(signal).add(run);
}

/** Resolves after `ms` milliseconds of a clock; rejects with the signal's reason as soon as `signal` aborts. */
export function sleepOn(clock: Clock, ms: number, signal?: EndSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = clock.after(ms, () => {
      forget();
      resolve();
    });
    const forget = signal
      ? onAbort(signal, () => {
          timer.cancel();
          reject(signal.reason);
        })
      : () => {};
  });
}

/** As `sleepOn`, on the system's clock: for commands and the SDK. */
export const sleep = (ms: number, signal?: AbortSignal): Promise<void> => sleepOn(systemClock, ms, signal);

/** Settles as `promise` does, or rejects with the signal's reason as soon as `signal` aborts. */
export function abortable<T>(promise: Promise<T>, signal: EndSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const forget = onAbort(signal, () => reject(signal.reason));
    promise.then(resolve, reject).finally(forget);
  });
}

/** What asks a process to end: Ctrl-C, a supervisor, and a terminal that is closed. */
const endSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Resolves with the first SIGINT, SIGTERM or SIGHUP. A second one ends the process at once, so that an
 * operator can always cut an orderly shutdown short.
 */
export function untilSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    const onSignal = (signal: NodeJS.Signals) => {
      for (const name of endSignals) process.off(name, onSignal);
      resolve(signal);
    };
    for (const name of endSignals) process.on(name, onSignal);
  });
}

/** Why `signal` was aborted, as an error: its own SwitchyardError, DEADLINE_EXCEEDED of a timeout, or CANCELLED. */
export function abortError(signal: EndSignal): SwitchyardError {
  const reason: unknown = signal.reason;
  if (reason instanceof SwitchyardError) return reason;
  const timedOut = reason instanceof DOMException && reason.name === 'TimeoutError';
  return timedOut
    ? new SwitchyardError('DEADLINE_EXCEEDED', 'the deadline has passed')
    : new SwitchyardError('CANCELLED', 'the operation was cancelled');
}

/**
 * What the end of a service may take, in this order: its drain (`drainMs` of its configuration); the goodbye to the coordinator;
 * the streams that are still open, which are then cut; the process itself.
 */
export const goodbyeMs = 500;
export const cutMs = 500;
export const processMs = 2_000;

/** How long a service with this drain takes to end at most. A process that exceeds it is ended. */
export function endMsMax(drainMs: number): number {
  return drainMs + goodbyeMs + cutMs + processMs;
}

/** A started service, as the main.ts of each gives it. */
export interface Running {
  /** host:port of its gRPC server. */
  readonly address: string;
  /** http://host:port of /metrics, /healthz, /readyz and /state. */
  readonly metricsUrl: string;
  /** Resolves when the service has ended as asked; rejects with why it ended by itself. */
  readonly stopped: Promise<void>;
  /** How long `stop` and the end of the process take at most. */
  readonly endMsMax: number;
  /** Drains and ends. Resolves when all is closed. Idempotent. */
  stop(reason: string): Promise<void>;
}
