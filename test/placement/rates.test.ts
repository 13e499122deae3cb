import { expect, test } from '@jest/globals';
import { exactly, MeasuredRate, usualRates } from '../../services/placement/rates.js';

test.each([
  ['what differs by less than the factor is the same', [95, 100, 108], [100, 100, 100]],
  ['what differs by more is as it was measured', [40, 100, 104, 230], [40, 102, 102, 230]],
  ['what was not measured is the median', [null, 10, 30, null], [20, 10, 30, 20]],
  ['without a measure all are as assumed', [null, null], [7, 7]],
])('%s', (_, measured, expected) => {
  expect(usualRates(measured.map(exactly), 7, 1.1)).toEqual(expected);
});

/** Of intervals with these seconds for 100 rows each: seconds a row. */
function measured(...seconds: number[]) {
  const rate = new MeasuredRate(0.9);
  for (const one of seconds) rate.add(one, 100);
  return rate.rate;
}

test('rates that differ by less than their intervals tell are the same; steady ones are not', () => {
  const steady = Array<number>(20).fill(1);
  const noisy = steady.map((_, index) => (index % 2 === 0 ? 0.4 : 2.2));
  const slow = steady.map((_, index) => (index % 2 === 0 ? 1.9 : 2.1));
  const rates = [measured(...steady), measured(...steady), measured(...noisy)];
  expect(rates[2]!.value).toBeGreaterThan(0.012);
  expect(usualRates(rates, 7, 1.1)).toEqual([0.01, 0.01, 0.01].map((rate) => expect.closeTo(rate)));
  const [, , third] = usualRates([measured(...steady), measured(...steady), measured(...slow)], 7, 1.1);
  expect(third).toBeCloseTo(0.02, 3);
});

test('a few intervals tell nothing of chance, however much alike they are', () => {
  expect(new MeasuredRate(0.9).rate).toBeNull();
  expect(measured(2)).toEqual({ value: 0.02, error: Number.POSITIVE_INFINITY });
  expect(
    usualRates([measured(1, 1, 1, 1, 1), measured(1, 1, 1, 1, 1), measured(3, 3, 3)], 7, 1.1)[2],
  ).toBeCloseTo(0.01);
  expect(measured(3, 3, 3, 3)!.error).toBeCloseTo(0);
});

test('what is older counts less', () => {
  const rate = new MeasuredRate(0.5);
  for (const seconds of [9, 9, 9, 1, 1, 1, 1, 1, 1, 1]) rate.add(seconds, 1);
  expect(rate.rate!.value).toBeLessThan(1.1);
});
