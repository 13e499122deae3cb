import { describe, expect, test } from '@jest/globals';
import { merge } from '../../services/client/merge.js';
import { mergeSummaries, type RouterSummary } from '../../services/client/summary.js';
import { Deferred } from '../../services/common/lifecycle.js';

async function* from(values: readonly string[], before: Promise<void> = Promise.resolve()) {
  for (const value of values) {
    await before;
    yield value;
  }
}

describe('merging answers', () => {
  test('gives every value once, those of one stream in order, none waiting for a slower stream', async () => {
    const merged: string[] = [];
    const quickOver = new Deferred<void>();
    for await (const value of merge([from(['b1', 'b2'], quickOver.promise), from(['a1', 'a2', 'a3'])])) {
      merged.push(value);
      if (value === 'a3') quickOver.resolve();
    }
    expect(merged).toEqual(['a1', 'a2', 'a3', 'b1', 'b2']);
  });

  test('fails with the first failure', async () => {
    const failing = (async function* () {
      yield 'x';
      throw new Error('broken');
    })();
    const all = async () => {
      for await (const _ of merge([from(['a1', 'a2']), failing]));
    };
    await expect(all()).rejects.toThrow('broken');
  });

  test('asks each stream for one value ahead, and no more', async () => {
    let asked = 0;
    const counting = (async function* () {
      for (;;) yield ++asked;
    })();
    const iterator = merge([counting]);
    await iterator.next();
    await iterator.next();
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(asked).toBe(3);
  });
});

const summary = (values: Partial<RouterSummary>): RouterSummary => ({
  transport: 'grpc',
  lanes: 'http2',
  batchId: 'b',
  router: '',
  tokens: 0,
  layers: [],
  droppedRows: 0,
  retries: 0,
  failedOverRows: 0,
  nonFiniteTokens: 0,
  nonFiniteOutputs: 0,
  timings: null,
  messagesSent: 0,
  rowsSent: 0,
  bytesSent: 0,
  assignments: 0,
  balancednessFirst: 0,
  balancednessLast: 0,
  bytesReturned: 0,
  ...values,
});

describe('merging summaries', () => {
  test('adds counts by layer and expert, and weighs balancedness by tokens', () => {
    const merged = mergeSummaries(
      [
        summary({
          router: 'r0',
          transport: 'ucx',
          lanes: 'mapped posix',
          tokens: 300,
          layers: [{ layer: 2, rows: [1, 2] }],
          balancednessLast: 1,
          messagesSent: 3,
        }),
        summary({
          router: 'r1',
          tokens: 100,
          layers: [
            { layer: 2, rows: [10, 20] },
            { layer: 1, rows: [5, 5] },
          ],
          balancednessLast: 0.6,
          messagesSent: 4,
        }),
      ],
      2,
    );
    expect(merged).toMatchObject({ tokens: 400, messagesSent: 7, seconds: 2 });
    expect(merged.layers).toEqual([
      { layer: 1, rows: [5, 5] },
      { layer: 2, rows: [11, 22] },
    ]);
    expect(merged.balancedness.last).toBeCloseTo(0.9);
    expect(merged.routers).toEqual([
      { name: 'r0', tokens: 300, transport: 'ucx', lanes: 'mapped posix' },
      { name: 'r1', tokens: 100, transport: 'grpc', lanes: 'http2' },
    ]);
  });
});
