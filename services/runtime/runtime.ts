import type { Clock } from './clock.js';
import type { Random } from './random.js';
import type { RowOperations } from './rows.js';

/** What a process has of its surroundings beside its connections. It is given, so that all that is built on it runs in simulated time too. */
export interface Runtime {
  clock: Clock;
  random: Random;
  rows: RowOperations;
}
