import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { predict } from '../../services/placement/predict.js';
import { splitRows } from '../../services/placement/split.js';
import { exactPeak, standing } from './support.js';

describe('the split of rows over copies', () => {
  const cases = standing({ workers: 6, hosts: 1, experts: 8, layers: 1 });

  test('gives every expert its rows, and to no copy less than none', () => {
    fc.assert(
      fc.property(cases, ({ workers, layers, present }) => {
        const { loads } = layers[0]!;
        const rates = Float64Array.from(workers, ({ rowsPerSecond }) => rowsPerSecond);
        const { rows, workerRows } = splitRows(loads, rates, present[0]!);
        const sums = new Float64Array(workers.length);
        for (const [expert, shares] of rows.entries()) {
          expect(shares.every((share) => share >= 0)).toBe(true);
          expect(shares.reduce((sum, share) => sum + share, 0)).toBeCloseTo(loads[expert]!, 6);
          for (const [copy, share] of shares.entries()) sums[present[0]![expert]![copy]!]! += share;
        }
        for (const [worker, sum] of sums.entries()) expect(workerRows[worker]).toBeCloseTo(sum, 6);
      }),
    );
  });

  test('the busiest worker is as little busy as it can be', () => {
    fc.assert(
      fc.property(cases, ({ workers, layers, present }) => {
        const { loads } = layers[0]!;
        const rates = workers.map(({ rowsPerSecond }) => rowsPerSecond);
        const { workerRows } = splitRows(loads, Float64Array.from(rates), present[0]!);
        const peak = Math.max(...workerRows.map((rows, worker) => rows / rates[worker]!));
        const exact = exactPeak(loads, rates, present[0]!);
        expect(peak).toBeGreaterThanOrEqual(exact * (1 - 1e-9));
        expect(peak).toBeLessThanOrEqual(exact * 1.001);
      }),
    );
  });

  test('copies share by the rates of their workers', () => {
    const { rows } = splitRows(Float64Array.of(900), Float64Array.of(100, 200), [[0, 1]]);
    expect([...rows[0]!]).toEqual([300, 600]);
  });
});

describe('workers and hosts of a token', () => {
  const workers = ['a', 'a', 'b', 'b'].map((host, index) => ({
    name: `worker-${index}`,
    host,
    memoryBytes: 1e9,
    rowsPerSecond: 1_000,
    loadBytesPerSecond: 1_000,
  }));
  const layer = { layer: 0, expertBytes: 1, loads: new Float64Array(8).fill(10), choices: null };
  /** Experts 0 and 1 on worker 0, 2 and 3 on worker 1, and so on. */
  const pairs = [[...layer.loads.keys()].map((expert) => [expert >> 1])];

  test('from a sample: those that its experts are on', () => {
    const together = Uint32Array.of(0, 1, 2, 3, 4, 5, 6, 7);
    const [near] = predict(workers, [{ ...layer, choices: together }], 2, pairs);
    expect(near).toMatchObject({ workersPerToken: 1, hostsPerToken: 1 });
    const apart = Uint32Array.of(0, 2, 4, 6, 0, 4, 2, 6);
    const [far] = predict(workers, [{ ...layer, choices: apart }], 2, pairs);
    expect(far).toMatchObject({ workersPerToken: 2, hostsPerToken: 1.5 });
  });

  test('a replicated expert counts by the shares of its copies', () => {
    const loads = Float64Array.of(10);
    const [one] = predict(workers, [{ ...layer, loads, choices: Uint32Array.of(0, 0) }], 1, [[[0, 2]]]);
    expect(one).toMatchObject({ workersPerToken: 1, hostsPerToken: 1 });
  });

  test('without a sample: as different experts chosen by chance would be', () => {
    const [alone] = predict(workers, [layer], 2, pairs);
    // Of 8 × 7 / 2 pairs of experts, those without one of 2, and of 4.
    expect(alone!.workersPerToken).toBeCloseTo(4 * (1 - (6 * 5) / (8 * 7)), 9);
    expect(alone!.hostsPerToken).toBeCloseTo(2 * (1 - (4 * 3) / (8 * 7)), 9);
  });

  test('without a sample: a token is on one worker at least, and where all experts are, on that alone', () => {
    const uneven = { ...layer, loads: Float64Array.of(90, 40, 30, 20, 10, 5, 5, 0) };
    for (const topK of [1, 2, 4]) {
      const copies = (holders: number[]) => [layer.loads.reduce<number[][]>((all) => [...all, holders], [])];
      const [together] = predict(workers, [uneven], topK, copies([1]));
      expect(together!.workersPerToken).toBeCloseTo(1, 9);
      expect(together!.hostsPerToken).toBeCloseTo(1, 9);
      const [spread] = predict(workers, [uneven], topK, pairs);
      expect(spread!.workersPerToken).toBeGreaterThanOrEqual(1 - 1e-9);
      expect(spread!.workersPerToken).toBeLessThanOrEqual(topK + 1e-9);
    }
    const many = {
      ...layer,
      loads: Float64Array.from({ length: 512 }, (_, expert) => 1 + (expert % 97) ** 2),
    };
    for (const topK of [8, 64]) {
      const [one] = predict(workers, [many], topK, [[...many.loads].map(() => [2])]);
      expect(one!.workersPerToken).toBeCloseTo(1, 9);
    }
    const few = { ...layer, loads: Float64Array.of(10, 0, 0, 0, 0, 0, 0, 0) };
    expect(predict(workers, [few], 2, pairs)[0]!.workersPerToken).toBeCloseTo(1, 9);
    const none = { ...layer, loads: new Float64Array(8) };
    expect(predict(workers, [none], 2, pairs)[0]!.workersPerToken).toBe(0);
  });
});
