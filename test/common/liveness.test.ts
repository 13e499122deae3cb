import { afterEach, beforeEach, expect, jest, test } from '@jest/globals';
import { Liveness } from '../../services/common/liveness.js';
import { createLogger } from '../../services/common/log.js';
import { systemClock } from '../../services/runtime/system.js';

const standstillMs = 10_000;

beforeEach(() => {
  jest.useFakeTimers();
});
const started: Liveness[] = [];
afterEach(() => {
  // Its timer is of the clock that was faked.
  for (const liveness of started.splice(0)) liveness.close();
  jest.useRealTimers();
});

/** Work that a test moves by hand. */
class Rows {
  readonly name = 'rows';
  done = 0;
  count = 0;

  underWay(): string | null {
    return this.count === 0 ? null : `${this.count} under way`;
  }
}

function watch(rows: Rows): { liveness: Liveness; told: boolean[] } {
  const told: boolean[] = [];
  const log = createLogger('test', 'test', 'silent');
  const onChange = (live: boolean) => told.push(live);
  const liveness = new Liveness({ work: () => [rows], standstillMs, clock: systemClock, log, onChange });
  started.push(liveness);
  return { liveness, told };
}

test('a process without work lives, and so does a busy one', () => {
  const rows = new Rows();
  const { liveness, told } = watch(rows);
  jest.advanceTimersByTime(10 * standstillMs);
  rows.count = 5;
  for (let turn = 0; turn < 20; turn += 1) {
    jest.advanceTimersByTime(standstillMs - 1_000);
    rows.done += 1;
  }
  expect(liveness.health()).toEqual({ healthy: true, reason: '' });
  expect(told).toEqual([]);
});

test('work that stands still for too long is named, until it moves', () => {
  const rows = new Rows();
  const { liveness, told } = watch(rows);
  jest.advanceTimersByTime(5_000);
  rows.count = 3;
  jest.advanceTimersByTime(standstillMs);
  expect(liveness.health().healthy).toBe(true);
  jest.advanceTimersByTime(2_000);
  const { healthy, reason } = liveness.health();
  expect(healthy).toBe(false);
  expect(reason).toMatch(
    /^rows stand still for \d+ ms: 3 under way; allowed: 10000 ms, as standstillMs has it$/,
  );
  rows.done += 1;
  jest.advanceTimersByTime(1_000);
  expect(liveness.health()).toEqual({ healthy: true, reason: '' });
  expect(told).toEqual([false, true]);
});

test('time in which the process itself was stopped does not count', () => {
  const rows = new Rows();
  const { liveness } = watch(rows);
  rows.count = 1;
  jest.advanceTimersByTime(3_000);
  // As SIGSTOP does: the clock goes on, and no timer comes.
  const now = performance.now();
  const stopped = jest.spyOn(performance, 'now').mockImplementation(() => now + 60_000);
  jest.advanceTimersToNextTimer();
  expect(liveness.health().healthy).toBe(true);
  stopped.mockRestore();
});
