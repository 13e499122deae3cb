import type { Clock } from './clock.js';
import type { Random } from './random.js';
import type { RowOperations } from './rows.js';

/** What the process takes of its machine. */
export interface Usage {
  rssBytes(): number;
  /** Since the process started. A loop that looks for messages where it could sleep is not busy. */
  eventLoopBusySeconds(): number;
  /** A meter of its own: each call returns the share of time, 0 to 1, that the event loop was busy since the call before. */
  eventLoopMeter(): () => number;
}

/** What a process has of its surroundings beside its connections. It is given, so that all that is built on it runs in simulated time too. */
export interface Runtime {
  clock: Clock;
  random: Random;
  rows: RowOperations;
  usage: Usage;
}
