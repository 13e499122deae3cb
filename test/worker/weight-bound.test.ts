import { expect, test } from '@jest/globals';
import { type WorkerConfig, weightBound } from '../../services/worker/config.js';

const config = (memory: number | null) => ({ memory, slabBytes: 1 }) as WorkerConfig;

test('the weights on a device take what it leaves for them, or less if memory says so, and never more', () => {
  const bytesOf = (memory: number | null) => weightBound(config(memory), 5, 1000).bytes;
  expect(bytesOf(null)).toBe(1000);
  expect(bytesOf(10)).toBe(10);
  expect(bytesOf(2000)).toBe(1000);
  expect(weightBound(config(2000), 5, 1000)).toMatchObject({ sharedBytes: 0 });
});
