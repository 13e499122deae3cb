import { expect, test } from '@jest/globals';
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
