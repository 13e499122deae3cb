import { AsyncLocalStorage } from 'node:async_hooks';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from '@jest/globals';
import { packageRoot } from '../../native/locate.js';
import type { Timer } from '../../services/runtime/clock.js';
import { systemClock } from '../../services/runtime/system.js';
import { until } from '../support/until.js';

/** So long that nothing here takes it, and shared by nobody else. */
const hour = 3_600_000;

test('what runs with one period runs in one turn of the event loop, whenever it began', async () => {
  const turns = new Map<string, number[]>();
  let turn = 0;
  const timers: Timer[] = [];
  const run = (name: string) => () => {
    turns.set(name, [...(turns.get(name) ?? []), turn]);
    setImmediate(() => (turn += 1));
  };
  timers.push(systemClock.every(23, run('first')));
  await new Promise((resolve) => setTimeout(resolve, 8));
  timers.push(systemClock.every(23, run('second')), systemClock.every(29, run('other')));
  await until(() => (turns.get('second')?.length ?? 0) >= 5);
  for (const timer of timers) timer.cancel();
  const [first, second] = [turns.get('first')!, turns.get('second')!];
  expect(first.slice(-5)).toEqual(second.slice(-5));
});

test('a timer that is cancelled runs no more, also when it was due in the same turn, and others go on', async () => {
  const ran: string[] = [];
  const first = systemClock.every(19, () => {
    ran.push('first');
    second.cancel();
    second.cancel();
  });
  const second = systemClock.every(19, () => ran.push('second'));
  const third = systemClock.every(19, () => ran.push('third'));
  await until(() => ran.filter((name) => name === 'third').length >= 3);
  first.cancel();
  third.cancel();
  const count = ran.length;
  expect(new Set(ran)).toEqual(new Set(['first', 'third']));
  let again = 0;
  const next = systemClock.every(19, () => (again += 1));
  await until(() => again >= 3);
  next.cancel();
  expect(ran).toHaveLength(count);
});

test('one that begins in its own turn has its turn in the next', async () => {
  let begun = 0;
  const timers: Timer[] = [];
  const begin = () => {
    timers.pop()?.cancel();
    if (begun < 5) timers.push(systemClock.every(17, begin));
    begun += 1;
  };
  begin();
  await until(() => begun > 5);
  expect(timers).toHaveLength(0);
});

test('each runs in the context in which it was asked for', async () => {
  const storage = new AsyncLocalStorage<string>();
  const seen = new Set<string>();
  const begin = (name: string) =>
    storage.run(name, () => systemClock.every(16, () => seen.add(`${name} in ${storage.getStore()}`)));
  const timers = ['first', 'second'].map(begin);
  await until(() => seen.size >= 2);
  for (const timer of timers) timer.cancel();
  expect([...seen].sort()).toEqual(['first in first', 'second in second']);
});

/** The output of a process that runs `code` with the clock, and ends by itself. */
async function outputOf(code: string): Promise<string> {
  const system = join(packageRoot(), 'dist', 'services', 'runtime', 'system.js');
  const script = `import { systemClock } from ${JSON.stringify(system)}; ${code}`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', script]);
  return stdout;
}

test('what one throws keeps no other from running, and is thrown all the same', async () => {
  const code = `let thrown = 0, ran = 0;
    process.on('uncaughtException', () => (thrown += 1));
    const first = systemClock.every(5, () => { throw new Error('no'); });
    const second = systemClock.every(5, () => { if (++ran === 3) { first.cancel(); second.cancel(); setImmediate(() => console.log(thrown, ran)); } });`;
  expect(await outputOf(code)).toBe('3 3\n');
});

test('a process stays as long as one timer of a period shall keep it', async () => {
  const unref = `for (let i = 0; i < 2; i++) systemClock.every(${hour}, () => {}).unref();`;
  expect(await outputOf(`${unref} console.log('over')`)).toBe('over\n');
  const keeping = `let left = 3; systemClock.every(5, () => {}).unref();
    const timer = systemClock.every(5, () => { if (--left === 0) { console.log('kept'); timer.cancel(); } });
    systemClock.every(5, () => {}).unref();`;
  expect(await outputOf(keeping)).toBe('kept\n');
});
