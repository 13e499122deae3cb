import { describe, expect, test } from '@jest/globals';
import type { PlanInput } from '../../services/placement/input.js';
import { loadingOf } from '../../services/placement/loading.js';

/** A layer of 80 experts on the first of two workers. */
function cluster(limits: PlanInput['limits'], changes: Partial<PlanInput> = {}): PlanInput {
  const experts = Array.from({ length: 80 }, (_, expert) => expert);
  const worker = { host: 'a', memoryBytes: 1e9, rowsPerSecond: 1, loadBytesPerSecond: 1_000 };
  return {
    workers: ['w0', 'w1'].map((name) => ({ ...worker, name })),
    layers: [{ layer: 0, expertBytes: 100, loads: Float64Array.from(experts, () => 1), choices: null }],
    topK: 1,
    present: [experts.map(() => [0])],
    copiesMin: 1,
    replicaSlots: null,
    limits,
    horizonSeconds: 60,
    crossingSeconds: 0,
    ...changes,
  };
}

const everywhere = (input: PlanInput) => input.present.map((experts) => experts.map(() => [0, 1]));
const load = (input: PlanInput) => loadingOf(input, everywhere(input));

describe('loading the copies of a plan takes', () => {
  test('no time if they are there', () => {
    const input = cluster({ loads: 1, bytesPerSecond: 1 });
    expect(loadingOf(input, input.present)).toMatchObject({ copies: 0, bytes: 0, seconds: 0 });
  });

  test('as long as the worker with the most to load does, at its rate', () => {
    expect(load(cluster({ loads: 1_000, bytesPerSecond: 1e9 }))).toMatchObject({
      ...{ copies: 80, bytes: 8_000 },
      seconds: 8_000 / 1_000 + 0.25,
    });
  });

  test('as long as the bytes that may be loaded in a second let it', () => {
    expect(load(cluster({ loads: 1_000, bytesPerSecond: 200 })).seconds).toBe(40);
  });

  test('a quarter of a second for each copy, as many side by side as may be loaded at once', () => {
    const fast = cluster({ loads: 8, bytesPerSecond: 1e12 });
    const workers = fast.workers.map((worker) => ({ ...worker, loadBytesPerSecond: 1e12 }));
    expect(load({ ...fast, workers }).seconds).toBeCloseTo((80 * 0.25) / 8, 6);
    expect(load({ ...fast, workers, limits: { loads: 1, bytesPerSecond: 1e12 } }).seconds).toBeCloseTo(20, 6);
  });

  test('no limit for experts that nobody serves', () => {
    const none = [Array.from({ length: 80 }, (): number[] => [])];
    const input = cluster({ loads: 1, bytesPerSecond: 1 }, { present: none });
    expect(loadingOf(input, [none[0]!.map(() => [1])]).seconds).toBe(8_000 / 1_000 + 0.25);
  });
});
