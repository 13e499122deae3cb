import { expect, test } from '@jest/globals';
import { usualRates } from '../../services/placement/rates.js';

test.each([
  ['what differs by chance is the same', [95, 100, 108], [100, 100, 100]],
  ['what differs by more is as it was measured', [40, 100, 104, 230], [40, 102, 102, 230]],
  ['what was not measured is the median', [null, 10, 30, null], [20, 10, 30, 20]],
  ['without a measure all are as assumed', [null, null], [7, 7]],
])('%s', (_, measured, expected) => {
  expect(usualRates(measured, 7)).toEqual(expected);
});
