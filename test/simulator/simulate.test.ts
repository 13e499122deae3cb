import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from '@jest/globals';
import { commandLine } from '../../native/locate.js';
import { simulate } from '../../services/simulator/simulate.js';

test('A seed decides everything: run again, it does the same', async () => {
  for (const seed of [1, 2, 3, 14]) {
    const lines: string[] = [];
    const first = await simulate(seed, { onLine: (line) => lines.push(line) });
    const again: string[] = [];
    const second = await simulate(seed, { onLine: (line) => again.push(line) });
    expect(again.slice(0, 50)).toEqual(lines.slice(0, 50));
    expect({ ...second, tail: [] }).toEqual({ ...first, tail: [] });
    expect(first.events).toBeGreaterThan(1000);
  }
});

test('Seeds differ', async () => {
  const [one, other] = [await simulate(21), await simulate(22)];
  expect(one.hash).not.toBe(other.hash);
});

const mutants = join('test', 'simulator', 'mutants');

test.each(readdirSync(mutants))('%s changes lines that are there', (name) => {
  const patch = readFileSync(join(mutants, name), 'utf8');
  const [, file] = /^--- a\/(\S+)$/m.exec(patch)!;
  const lines = readFileSync(file!, 'utf8').split('\n');
  const changed = patch.split('\n').filter((line) => line.startsWith('-') && !line.startsWith('---'));
  for (const line of changed) expect(lines).toContain(line.slice(1));
});

test('200 seeds do nothing that must never happen', async () => {
  const main = commandLine();
  const run = (seed: number) =>
    promisify(execFile)(process.execPath, [
      main,
      'simulate',
      '--seed',
      `${seed}`,
      '--seeds',
      '100',
      '--json',
    ]);
  // What fails says so, with its last events, in what the rejection carries.
  const reports = await Promise.all([1, 101].map(run));
  for (const { stdout } of reports) expect(JSON.parse(stdout)).toMatchObject({ seeds: 100, failed: 0 });
  // Four minutes of processor time on a slow machine.
}, 1_800_000);
