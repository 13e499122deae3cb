import { describe, expect, test } from '@jest/globals';
import { BatchAccount } from '../../services/router/account.js';
import { WorkerLoad } from '../../services/router/balancedness.js';
import { indexPlacements, nowhere } from '../../services/router/placement.js';
import { plan, smallModel } from './support.js';

const view = {
  epoch: 3,
  ready: true,
  nodes: [],
  reason: '',
  placements: smallModel.layers.flatMap(({ layer, experts }) =>
    Array.from({ length: experts }, (_, expert) => ({ layer, expert, workers: [`w${expert % 3}`] })),
  ),
};

describe('the index of placements', () => {
  test('numbers the workers by name and finds every expert', () => {
    const index = indexPlacements(view);
    expect(index).toMatchObject({ epoch: 3, workers: ['w0', 'w1', 'w2'] });
    expect([...index.workerOf.get(1)!]).toEqual([0, 1, 2, 0, 1, 2]);
  });

  test('takes the first copy, and marks experts on no worker', () => {
    const index = indexPlacements({
      ...view,
      placements: [
        { layer: 0, expert: 0, workers: ['b', 'a'] },
        { layer: 0, expert: 2, workers: [] },
      ],
    });
    expect(index.workers).toEqual(['a', 'b']);
    expect([...index.workerOf.get(0)!]).toEqual([1, nowhere, nowhere]);
  });
});

describe('balancedness', () => {
  const workerOf = Uint32Array.of(0, 0, 1, 2);
  const workers = ['a', 'b', 'c', 'idle'];

  test('is mean/max over workers, the idle ones included, averaged over layers', () => {
    const load = new WorkerLoad();
    load.add(0, Uint32Array.of(10, 20, 30, 0), workerOf, workers);
    expect(load.balancedness(0)).toBeCloseTo(15 / 30);
    load.add(1, Uint32Array.of(0, 0, 0, 8), workerOf, workers);
    expect(load.balancedness(1)).toBeCloseTo(0.25);
    expect(load.average()).toBeCloseTo((0.5 + 0.25) / 2);
  });

  test('sums chunks before it compares', () => {
    const load = new WorkerLoad();
    load.add(0, Uint32Array.of(8, 0, 0, 0), workerOf, ['a', 'b']);
    load.add(0, Uint32Array.of(0, 0, 8, 0), workerOf, ['a', 'b']);
    expect(load.balancedness(0)).toBe(1);
  });

  test('is 1 without rows', () => {
    expect(new WorkerLoad().average()).toBe(1);
  });
});

describe('the account of a batch', () => {
  test('becomes its summary', () => {
    const account = new BatchAccount(plan({ sequences: 10, length: 10 }));
    const placement = indexPlacements(view);
    // First tenth: all on w0. In between: not counted. Last tenth: even.
    account.routed({ offset: 0, tokens: 10 }, 0, Uint32Array.of(10, 0, 0, 10, 0, 0), placement);
    account.routed({ offset: 40, tokens: 10 }, 0, Uint32Array.of(0, 20, 0, 0, 0, 0), placement);
    account.routed({ offset: 85, tokens: 15 }, 0, Uint32Array.of(5, 5, 5, 5, 5, 5), placement);
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
      layers: [
        { layer: 0, rows: [15, 25, 5, 15, 5, 5] },
        { layer: 1, rows: [0, 0, 0, 0, 0, 0] },
        { layer: 2, rows: [0, 0, 0, 0, 0, 0] },
      ],
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

  test('of a batch of one chunk has it in both tenths', () => {
    const account = new BatchAccount(plan());
    account.routed({ offset: 0, tokens: 32 }, 0, Uint32Array.of(64, 0, 0, 0, 0, 0), indexPlacements(view));
    expect(account.summary('r')).toMatchObject({
      balancednessFirst: expect.closeTo(1 / 3),
      balancednessLast: expect.closeTo(1 / 3),
    });
  });
});
