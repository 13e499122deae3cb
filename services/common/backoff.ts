import type { Random } from '../runtime/random.js';

/**
 * Milliseconds to wait after attempt number `attempt`, from 0: `min`, twice as long each time, `max` in the end. The latter half is by
 * chance, so that those who lost the same peer do not come back at once.
 */
export function backoffMs(random: Random, attempt: number, min: number, max: number): number {
  return Math.min(max, min * 2 ** Math.min(attempt, 10)) * (0.5 + random.unit() / 2);
}
