import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { CallCounts, callSize, callSizes, rowsFrom } from '../../services/common/call-sizes.js';
import { plannedRates, type Speed, SpeedMeter } from '../../services/placement/speeds.js';
import { SeededRandom } from '../../services/simulator/random.js';

describe('the size of a call', () => {
  test('is one of two to each power of two, and is named by its fewest rows', () => {
    const firsts = Array.from({ length: 64 }, (_, index) => rowsFrom(callSize(index + 1)));
    expect([...new Set(firsts)]).toEqual([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]);
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 2 ** 30 - 1 }), (rows) => {
        const size = callSize(rows);
        expect(rowsFrom(size)).toBeLessThanOrEqual(rows);
        if (size === callSizes - 1) expect(rows).toBeGreaterThanOrEqual(rowsFrom(size));
        else expect(rowsFrom(size + 1)).toBeGreaterThan(rows);
      }),
    );
  });
});

/** Of one expert: its weights are read once for all rows of a call. */
const secondsOf = (rows: number) => 100e-6 + rows * 1e-6;

interface Work {
  /** Of its calls on average. */
  rows: number;
  calls: number;
  factor: number;
}

/** What is measured of a worker in reports in which it makes so many calls, of exponentially distributed sizes, some of which are held up. */
function measured({ rows, calls, factor }: Work, reports: number, random: SeededRandom): Speed {
  const meter = new SpeedMeter();
  const counts = new CallCounts();
  for (let report = 0, before = counts.report(); report < reports; report += 1) {
    for (let call = 0; call < calls; call += 1) {
      const size = Math.max(1, Math.ceil(-Math.log(1 - random.unit()) * rows));
      counts.add(size, secondsOf(size) * factor * (random.unit() < 0.01 ? 20 : 0.8 + 0.4 * random.unit()));
    }
    const after = counts.report();
    meter.add(before, after);
    before = after;
  }
  return meter.speed;
}

const even = { rows: 8, calls: 400, factor: 1 };
/** Of some workers of a cluster, by a seed. */
const ratesOf = (works: readonly Work[], seed: number, reports = 60) => {
  const random = new SeededRandom(seed);
  return plannedRates(
    works.map((work) => measured(work, reports, random)),
    1,
  );
};
const seeds = Array.from({ length: 8 }, (_, seed) => seed);

describe('the rates that a plan is made with', () => {
  const sizes = [1, 2, 4, 8, 16, 32, 64, 128].map((rows) => ({ ...even, rows }));

  test.each(seeds)('are the same for equal workers, however long their calls were (seed %i)', (seed) => {
    expect(new Set(ratesOf(sizes, seed)).size).toBe(1);
  });

  test.each(seeds)('are lower for one that is slower, whatever calls it had (seed %i)', (seed) => {
    const slow = { ...sizes[seed % 8]!, factor: 2 };
    const rates = ratesOf(
      sizes.map((work, index) => (index === seed % 8 ? slow : work)),
      seed,
    );
    const others = rates.filter((_, index) => index !== seed % 8);
    expect(new Set(others).size).toBe(1);
    expect(rates[seed % 8]! / others[0]!).toBeGreaterThan(0.4);
    expect(rates[seed % 8]! / others[0]!).toBeLessThan(0.6);
  });

  test('are those of two kinds of workers', () => {
    const rates = ratesOf(
      [1, 1, 1, 2.5, 2.5].map((factor) => ({ ...even, factor })),
      1,
    );
    expect(new Set(rates.slice(0, 3)).size).toBe(1);
    for (const rate of rates.slice(3)) expect(rate / rates[0]!).toBeCloseTo(0.4, 1);
  });

  test('are the median of all where workers share no size, or were hardly measured', () => {
    const speed = (rowsPerSecond: number | null, rows: number[]): Speed => ({
      rowsPerSecond,
      sizes: rows.map((one) => ({ rows: one, rowsPerSecond: one * 100, error: 1 })),
    });
    expect(plannedRates([speed(10, [1]), speed(40, [2]), speed(30, [3]), speed(null, [])], 7)).toEqual([
      30, 30, 30, 30,
    ]);
    expect(plannedRates([speed(null, []), speed(null, [])], 7)).toEqual([7, 7]);
    // Three reports.
    expect(new Set(ratesOf([even, { ...even, factor: 3 }], 1, 3)).size).toBe(1);
    // One common size, of which hardly anything is known.
    const hardly = (rowsPerSecond: number) => ({ rows: 8, rowsPerSecond, error: rowsPerSecond / 2 });
    const groups = [hardly(1000), hardly(3000)].map((one, group) =>
      [0, 1, 2, 3].map((member) => {
        const { sizes } = speed(null, group === 0 ? [1, 2, 3] : [64, 96, 128]);
        return { rowsPerSecond: 100, sizes: member === 0 ? [...sizes, one] : sizes };
      }),
    );
    expect(new Set(plannedRates(groups.flat(), 1)).size).toBe(1);
  });
});
