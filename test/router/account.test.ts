import { describe, expect, test } from '@jest/globals';
import { copiesMessage } from '../../services/common/expert-copies.js';
import { BatchAccount } from '../../services/router/account.js';
import { WorkerLoad } from '../../services/router/balancedness.js';
import { describePlacement, indexPlacement } from '../../services/router/placement.js';
import { systemClock } from '../../services/runtime/system.js';
import { plan, smallModel } from './support.js';

const told = {
  workers: ['w0', 'w1', 'w2'],
  layers: smallModel.layers.map(({ layer, experts }) =>
    copiesMessage(
      layer,
      Array.from({ length: experts }, (_, expert) => [expert % 3]),
    ),
  ),
};
const placement = indexPlacement({ term: 2, epoch: 3 }, told, null);

describe('the index of a placement', () => {
  test('finds every expert, counts those of each worker, and can be told on', () => {
    expect(placement).toMatchObject({ term: 2, epoch: 3, workers: ['w0', 'w1', 'w2'] });
    expect([...placement.copies.get(1)!.workers]).toEqual([0, 1, 2, 0, 1, 2]);
    expect([...placement.expertsAt.get(1)!]).toEqual([2, 2, 2]);
    expect(describePlacement(placement)).toEqual(told);
  });

  test.each([
    ['a worker that there is not', [[0], [3]], /layer 5 expert 1 on worker 3; allowed: below 3/],
    ['a worker twice', [[0], [1, 1]], /layer 5 expert 1 on worker 1; allowed: below 3, ascending/],
  ])('is refused if it names %s', (_, workersOf, text) => {
    const layers = [copiesMessage(5, workersOf)];
    expect(() => indexPlacement({ term: 1, epoch: 3 }, { ...told, layers }, null)).toThrow(text);
  });

  test('is refused if it names more workers than copies', () => {
    const layers = [{ layer: 5, copies: [1, 2], workers: [0, 1] }];
    expect(() => indexPlacement({ term: 1, epoch: 3 }, { ...told, layers }, null)).toThrow(
      /placed 3 copies of layer 5 on 2 workers/,
    );
  });

  test('keeps the layers that a message of the same term does not have, and none of another term', () => {
    const layers = [
      copiesMessage(
        1,
        smallModel.layers.map(() => [2]),
      ),
    ];
    const later = indexPlacement({ term: 2, epoch: 4 }, { ...told, layers }, placement);
    expect([...later.copies.keys()]).toEqual([...placement.copies.keys()]);
    expect([...new Set(later.copies.get(1)!.workers)]).toEqual([2]);
    expect(later.copies.get(0)).toEqual(placement.copies.get(0));
    const other = indexPlacement({ term: 3, epoch: 1 }, { ...told, layers }, later);
    expect([...other.copies.keys()]).toEqual([1]);
  });

  test('knows several copies of an expert, and none', () => {
    const layers = [copiesMessage(5, [[1], [], [0, 2]])];
    const { copies, expertsAt } = indexPlacement({ term: 1, epoch: 3 }, { ...told, layers }, null);
    expect([...copies.get(5)!.offsets]).toEqual([0, 1, 1, 3]);
    expect([...copies.get(5)!.workers]).toEqual([1, 0, 2]);
    expect([...expertsAt.get(5)!]).toEqual([1, 1, 1]);
  });

  test('knows which worker had an expert last that has no copy any more, over later placements and terms', () => {
    const of = (workersOf: number[][]) => ({ ...told, layers: [copiesMessage(5, workersOf)] });
    const first = indexPlacement({ term: 1, epoch: 1 }, of([[1], [0, 2], []]), null);
    expect([...first.lastAt.get(5)!]).toEqual([]);
    const lost = indexPlacement({ term: 1, epoch: 2 }, of([[], [2], []]), first);
    expect([...lost.lastAt.get(5)!]).toEqual([[0, 'w1']]);
    const other = { workers: ['w9'], layers: [copiesMessage(5, [[], [], [0]])] };
    const next = indexPlacement({ term: 2, epoch: 1 }, other, lost);
    expect([...next.lastAt.get(5)!]).toEqual([
      [0, 'w1'],
      [1, 'w2'],
    ]);
    const back = indexPlacement({ term: 2, epoch: 2 }, of([[0], [0], [0]]), next);
    expect([...back.lastAt.get(5)!]).toEqual([]);
  });
});

const on = (workers: readonly string[], ...rows: number[]) => ({ workers, rows: Float64Array.from(rows) });

describe('balancedness', () => {
  const workers = ['a', 'b', 'c', 'idle'];

  test('is mean/max over workers, the idle ones included, averaged over layers', () => {
    const load = new WorkerLoad();
    load.add(0, on(workers, 30, 30, 0, 0));
    expect(load.balancedness(0)).toBeCloseTo(15 / 30);
    load.add(1, on(workers, 0, 0, 8, 0));
    expect(load.balancedness(1)).toBeCloseTo(0.25);
    expect(load.average()).toBeCloseTo((0.5 + 0.25) / 2);
  });

  test('sums chunks before it compares', () => {
    const load = new WorkerLoad();
    const two = ['a', 'b'];
    load.add(0, on(two, 8, 0));
    load.add(0, on(two, 0, 8));
    expect(load.balancedness(0)).toBe(1);
  });

  test('is 1 without rows', () => {
    expect(new WorkerLoad().average()).toBe(1);
  });
});

const got = (...rows: number[]) => on(told.workers, ...rows);

function routed(
  account: BatchAccount,
  chunk: { offset: number; tokens: number },
  rows: Uint32Array,
  load: ReturnType<typeof got>,
): void {
  account.routed(0, rows);
  account.got(chunk, 0, load);
}

describe('the account of a batch', () => {
  test('becomes its summary', () => {
    const account = new BatchAccount(plan({ sequences: 10, length: 10 }), systemClock);
    // First tenth: all on w0. In between: not counted. Last tenth: even.
    routed(account, { offset: 0, tokens: 10 }, Uint32Array.of(10, 0, 0, 10, 0, 0), got(20, 0, 0));
    routed(account, { offset: 40, tokens: 10 }, Uint32Array.of(0, 20, 0, 0, 0, 0), got(0, 20, 0));
    routed(account, { offset: 85, tokens: 15 }, Uint32Array.of(5, 5, 5, 5, 5, 5), got(10, 10, 10));
    account.exchanged({
      rowsSent: 7,
      bytesSent: 224,
      bytesReturned: 320,
      seconds: 1,
      computeSeconds: 0.5,
      queueSeconds: 0.25,
    });
    account.spend('gate', 2);
    account.spend('gate', 1);
    account.tokens = 100;
    expect(account.summary('r')).toMatchObject({
      batchId: 'batch',
      router: 'r',
      tokens: 100,
      layers: [{ layer: 0, rows: [15, 25, 5, 15, 5, 5] }],
      messagesSent: 1,
      rowsSent: 7,
      bytesSent: 224,
      bytesReturned: 320,
      assignments: 70,
      balancednessFirst: expect.closeTo(1 / 3),
      balancednessLast: 1,
      timings: {
        gateSeconds: 3,
        exchangeSeconds: 1,
        computeSeconds: 0.5,
        queueSeconds: 0.25,
        combineSeconds: 0,
      },
    });
  });

  test('tells who got rows, also those that another one got before and did not answer', () => {
    const account = new BatchAccount(plan(), systemClock);
    const chunk = { offset: 0, tokens: 32 };
    routed(account, chunk, Uint32Array.of(64, 0, 0, 0, 0, 0), got(64, 0, 0));
    account.got(chunk, 0, got(0, 32, 32));
    expect(account.summary('r').balancednessLast).toBeCloseTo(128 / 3 / 64);
    expect(account.summary('r').layers).toEqual([{ layer: 0, rows: [64, 0, 0, 0, 0, 0] }]);
  });

  test('of a batch of one chunk has it in both tenths', () => {
    const account = new BatchAccount(plan(), systemClock);
    routed(account, { offset: 0, tokens: 32 }, Uint32Array.of(64, 0, 0, 0, 0, 0), got(64, 0, 0));
    expect(account.summary('r')).toMatchObject({
      balancednessFirst: expect.closeTo(1 / 3),
      balancednessLast: expect.closeTo(1 / 3),
    });
  });
});
