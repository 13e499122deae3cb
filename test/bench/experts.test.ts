import { expect, test } from '@jest/globals';
import type { BenchReport } from '../../bench/report.js';
import { ofBound } from '../../bench/turns.js';
import { usableCores } from '../../services/common/machine.js';
import { switchyard } from '../support/cli.js';

test('few rows are bound by reading weights, many by the peak', () => {
  const turn = { peers: {}, ours: 2, registers: 90, cached: 100, read: 5 };
  // Operations a second: 20 of at most 4 × 5, and 75 of at most 100.
  expect(ofBound(4, 40, [turn])).toBe(1);
  expect(ofBound(64, 150, [turn])).toBe(0.75);
  expect(ofBound(4, 40, [turn, { ...turn, ours: 4 }, { ...turn, ours: 8 }])).toBe(0.5);
});

(usableCores() < 2 ? test.skip : test)('two threads are measured beside one', async () => {
  const id = 'experts/1024x2816-swiglu-512-2threads';
  const { status, stdout } = await switchyard(['bench', id, '--runs', '2', '--json', '-']);
  expect(status).toBe(0);
  const { results } = JSON.parse(stdout) as BenchReport;
  expect(results).toHaveLength(1);
  expect(results[0]).toMatchObject({ id, unit: 'TFLOP/s', referenceName: 'one thread' });
  expect(results[0]!.runs).toHaveLength(2);
  expect(results[0]!.value).toBeGreaterThan(0);
  expect(results[0]!.reference).toBeGreaterThan(0);
});
