import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import type { Copies, PlanInput } from '../../services/placement/input.js';
import { usualLimits } from '../../services/placement/loading.js';
import { type Plan, plan } from '../../services/placement/plan.js';
import { exactPeak, inputs, standing } from './support.js';

const usual = { workers: 6, hosts: 3, experts: 12, layers: 3 };
const sparing = { ...usual, traffic: true };
const peaks = (layers: Plan['predicted']['target']) => layers.reduce((sum, { peak }) => sum + peak, 0);

/** Bytes that each worker holds. */
function bytesHeld({ workers, layers }: PlanInput, copies: Copies): number[] {
  const bytes = workers.map(() => 0);
  for (const [layer, experts] of copies.entries())
    for (const worker of experts.flat()) bytes[worker]! += layers[layer]!.expertBytes;
  return bytes;
}

function hostsOf({ workers }: PlanInput, holders: readonly number[]): number {
  return new Set(holders.map((worker) => workers[worker]!.host)).size;
}

/** A layer of 8 experts on two workers of each of two hosts, with room for one expert more on each worker. */
function cluster(loads: number[], changes: Partial<PlanInput> = {}): PlanInput {
  return {
    workers: ['a0', 'a1', 'b0', 'b1'].map((name) => ({
      name,
      host: name[0]!,
      memoryBytes: 300,
      rowsPerSecond: 1_000,
      loadBytesPerSecond: 1_000,
    })),
    layers: [{ layer: 0, expertBytes: 100, loads: Float64Array.from(loads), choices: null }],
    topK: 2,
    present: [loads.map((_, expert) => [expert % 4])],
    copiesMin: 1,
    replicaSlots: null,
    limits: usualLimits,
    horizonSeconds: 600,
    crossingSeconds: 0,
    ...changes,
  };
}

describe('a plan', () => {
  test('every expert has its copies, on as many workers, and no worker more than its memory', () => {
    const cases = fc.oneof(
      inputs(usual),
      inputs({ ...usual, copiesMin: 2 }),
      inputs({ ...usual, spare: 0 }),
      inputs(sparing),
    );
    fc.assert(
      fc.property(cases, (input) => {
        const { target } = plan(input);
        for (const holders of target.flat()) {
          expect(holders.length).toBeGreaterThanOrEqual(input.copiesMin);
          expect(holders).toEqual([...new Set(holders)].sort((a, b) => a - b));
        }
        for (const [worker, bytes] of bytesHeld(input, target).entries())
          expect(bytes).toBeLessThanOrEqual(input.workers[worker]!.memoryBytes);
      }),
    );
  });

  test('is never worse than staying, and moves only what pays', () => {
    fc.assert(
      fc.property(fc.oneof(standing(usual), standing({ ...usual, copiesMin: 2 })), (input) => {
        const { target, predicted, ...figures } = plan(input);
        const { gainSeconds, costSeconds, netGainSeconds, secondsToLoad } = figures;
        expect(peaks(predicted.target)).toBeLessThanOrEqual(peaks(predicted.present));
        const gained = peaks(predicted.present) - peaks(predicted.target);
        expect(gainSeconds).toBeLessThanOrEqual(input.horizonSeconds * gained + 1e-9);
        expect(gainSeconds).toBeGreaterThanOrEqual((input.horizonSeconds - secondsToLoad) * gained - 1e-9);
        expect(gainSeconds > 0).toBe(JSON.stringify(target) !== JSON.stringify(input.present));
        expect(gainSeconds).toBeGreaterThanOrEqual(2 * costSeconds);
        expect(netGainSeconds).toBe(gainSeconds - costSeconds);
        for (const [index, before] of predicted.present.entries()) {
          const isChanged = JSON.stringify(target[index]) !== JSON.stringify(input.present[index]);
          if (isChanged) expect(predicted.target[index]!.peak).toBeLessThanOrEqual(before.peak * 0.98);
        }
      }),
    );
  });

  test('where links between hosts are to be spared, time and traffic together are never worse than staying', () => {
    fc.assert(
      fc.property(fc.oneof(standing(sparing), standing({ ...sparing, copiesMin: 2 })), (input) => {
        const { target, gainSeconds, costSeconds } = plan(input);
        expect(gainSeconds).toBeGreaterThanOrEqual(2 * costSeconds);
        for (const [layer, experts] of target.entries())
          for (const [expert, holders] of experts.entries()) {
            const before = hostsOf(input, input.present[layer]![expert]!);
            expect(hostsOf(input, holders)).toBeGreaterThanOrEqual(Math.min(before, input.copiesMin));
          }
      }),
    );
  });

  test('planning from the target moves nothing, and the same input gives the same plan', () => {
    const cases = fc.oneof(
      inputs(usual),
      standing(usual),
      inputs({ ...usual, copiesMin: 2 }),
      inputs(sparing),
    );
    fc.assert(
      fc.property(cases, (input) => {
        const first = plan(input);
        expect(plan(structuredClone(input))).toEqual(first);
        const again = plan({ ...input, present: first.target });
        expect(again.target).toEqual(first.target);
        expect(again).toMatchObject({ copiesToLoad: 0, copiesToDrop: 0, bytesToLoad: 0, netGainSeconds: 0 });
      }),
    );
  });

  test('a closed worker gets no copy that it does not have, and may lose those that it has', () => {
    const crowded = { ...usual, workers: 4, hosts: 2 };
    const cases = fc.oneof(...[crowded, sparing, { ...crowded, spare: 0 }].map(standing));
    let moved = 0;
    fc.assert(
      fc.property(cases, fc.nat(), (drawn, at) => {
        const closed = at % drawn.workers.length;
        const workers = drawn.workers.map((worker, index) => ({ ...worker, closed: index === closed }));
        const { target, copiesToLoad } = plan({ ...drawn, workers });
        moved += copiesToLoad;
        for (const [layer, experts] of target.entries())
          for (const [expert, holders] of experts.entries())
            if (holders.includes(closed)) expect(drawn.present[layer]![expert]).toContain(closed);
      }),
      { numRuns: 500 },
    );
    expect(moved).toBeGreaterThan(0);
  });

  test('what nobody holds comes to no closed worker, whatever memory that has', () => {
    const { workers, ...input } = cluster([5, 5, 5, 5]);
    const closed = workers.map((worker, index) => ({ ...worker, closed: index === 0, memoryBytes: 200 }));
    const { target } = plan({ ...input, workers: closed, present: [[[], [], [], []]] });
    expect(target.flat(2)).not.toContain(0);
    const two = closed.slice(0, 2);
    expect(() => plan({ ...input, workers: two, present: [[[], [], [], []]] })).toThrow(
      'fits on none of the 1 workers without it: the most that is left on one of them is 0 bytes',
    );
  });

  test('what pays only from the target is part of the plan', () => {
    const worker = (name: string, host: string, memoryBytes: number, rowsPerSecond: number) => {
      return { name, host, memoryBytes, rowsPerSecond, loadBytesPerSecond: 1_000 };
    };
    const loads = Float64Array.of(0, 515, 832, 220, 911, 0, 0, 5_000, 0, 220);
    const input = cluster([], {
      workers: [worker('a0', 'a', 600, 2_000), worker('a1', 'a', 600, 1_000), worker('b0', 'b', 500, 2_000)],
      layers: [{ layer: 0, expertBytes: 100, loads, choices: Uint32Array.of(9, 1, 8, 2, 8, 5) }],
      present: [[[], [0, 2], [], [], [], [0], [2], [], [], [0]]],
      replicaSlots: 0,
      horizonSeconds: 1.4,
      crossingSeconds: 0.01,
    });
    const { target } = plan(input);
    expect(plan({ ...input, present: target }).target).toEqual(target);
  });

  test('copies of an expert are spread over hosts where there is memory', () => {
    fc.assert(
      fc.property(inputs({ ...usual, copiesMin: 2, spare: 0 }), (drawn) => {
        const workers = drawn.workers.map((worker) => ({ ...worker, memoryBytes: 1e9 }));
        const input = { ...drawn, workers, present: drawn.present.map((experts) => experts.map(() => [])) };
        const hosts = new Set(workers.map(({ host }) => host)).size;
        for (const holders of plan(input).target.flat())
          expect(hostsOf(input, holders)).toBe(Math.min(holders.length, hosts));
      }),
    );
  });

  test('what moves for a gain leaves no expert on fewer hosts than it must be on', () => {
    fc.assert(
      fc.property(standing({ ...usual, copiesMin: 2 }), (input) => {
        for (const [layer, experts] of plan(input).target.entries())
          for (const [expert, holders] of experts.entries()) {
            const before = hostsOf(input, input.present[layer]![expert]!);
            expect(hostsOf(input, holders)).toBeGreaterThanOrEqual(Math.min(before, input.copiesMin));
          }
      }),
    );
  });

  test('tiny clusters: within 2 % of the best of all placements in 19 of 20 cases, and within twice of it in all', () => {
    // Drawn with a fixed seed: what a local search misses is a matter of the case.
    const bounds = { workers: 3, hosts: 2, experts: 4, layers: 1, spare: 2 };
    const ratios = fc.sample(standing(bounds), { seed: 13, numRuns: 200 }).map((drawn) => {
      const input = { ...drawn, horizonSeconds: 1e6 };
      const rates = input.workers.map(({ rowsPerSecond }) => rowsPerSecond);
      const { loads } = input.layers[0]!;
      const peakOf = (copies: Copies) => exactPeak(loads, rates, copies[0]!);
      const best = Math.min(...allCopies(input).map(peakOf));
      return best > 0 ? peakOf(plan(input).target) / best : 1;
    });
    ratios.sort((a, b) => a - b);
    // A layer is left alone for less than 2 %.
    expect(ratios[Math.floor(ratios.length * 0.95)]!).toBeLessThan(1.0205);
    expect(Math.max(...ratios)).toBeLessThan(2);
  });

  test('layers of 256 experts, two copies of each, on 64 workers of 8 hosts', () => {
    const layers = Array.from({ length: 4 }, (_, layer) => ({
      layer,
      expertBytes: 100,
      loads: Float64Array.from(
        { length: 256 },
        (_, expert) => 1e4 / (1 + ((expert * 37 + layer * 11) % 256)),
      ),
      choices: null,
    }));
    const workers = Array.from({ length: 64 }, (_, index) => ({
      ...cluster([]).workers[0]!,
      name: `worker-${index}`,
      host: `host-${index % 8}`,
      memoryBytes: 4 * 9 * 100,
    }));
    const present = layers.map(({ loads }) => Array.from(loads, () => []));
    const input = { ...cluster([]), workers, layers, present, copiesMin: 2, topK: 8 };
    const { target, predicted } = plan(input);
    expect(target.flat().filter((holders) => hostsOf(input, holders) < 2)).toEqual([]);
    expect(Math.max(...predicted.target.map(({ imbalance }) => imbalance))).toBeLessThan(0.03);
  });
});

describe('what a plan does', () => {
  const hot = [700, 100, 100, 100, 100, 100, 100, 100];

  test('a hot expert gets a copy on the other host, and its rows are split', () => {
    const { target, predicted } = plan(cluster(hot));
    expect(target[0]![0]!.length).toBeGreaterThan(1);
    expect(hostsOf(cluster(hot), target[0]![0]!)).toBe(2);
    expect(predicted.present[0]!.imbalance).toBeCloseTo(800 / 350 - 1, 3);
    expect(predicted.target[0]!.imbalance).toBeLessThan(0.03);
    expect(predicted.target[0]!.balancedness).toBeCloseTo(1 / (1 + predicted.target[0]!.imbalance), 6);
  });

  test('without slots for replicas no expert gets a copy more', () => {
    const { target } = plan(cluster(hot, { replicaSlots: 0 }));
    expect(target[0]!.every(({ length }) => length === 1)).toBe(true);
  });

  test('a slow worker gets rows by its rate', () => {
    const input = cluster([100, 100, 100, 100, 100, 100, 100, 100]);
    const workers = input.workers.map((worker, index) =>
      index === 0 ? { ...worker, rowsPerSecond: 250 } : worker,
    );
    const { predicted } = plan({ ...input, workers });
    expect(predicted.present[0]!.imbalance).toBeCloseTo(200 / 250 / (800 / 3_250) - 1, 3);
    expect(predicted.target[0]!.imbalance).toBeLessThan(0.05);
  });

  test('nothing moves for a gain that loading eats up, and all is the same for more time', () => {
    const slow = cluster(hot).workers.map((worker) => ({ ...worker, loadBytesPerSecond: 1 }));
    const short = plan(cluster(hot, { workers: slow, horizonSeconds: 10 }));
    expect(short).toMatchObject({ copiesToLoad: 0, gainSeconds: 0, costSeconds: 0, secondsToLoad: 0 });
    const long = plan(cluster(hot, { workers: slow, horizonSeconds: 3_600 }));
    expect(long.copiesToLoad).toBeGreaterThan(0);
    expect(long.secondsToLoad).toBeGreaterThanOrEqual(100);
    expect(long.bytesToLoad).toBe(100 * long.copiesToLoad);
    expect(long.netGainSeconds).toBeGreaterThan(long.costSeconds);
  });

  test('a gain counts from when its copies are there: what is loaded only after the horizon does not move', () => {
    const loaded = (bytesPerSecond: number) => plan(cluster(hot, { limits: { loads: 8, bytesPerSecond } }));
    const { predicted, gainSeconds, secondsToLoad, copiesToLoad } = loaded(2);
    expect(copiesToLoad).toBeGreaterThan(0);
    expect(secondsToLoad).toBe(copiesToLoad * 50);
    const saved = peaks(predicted.present) - peaks(predicted.target);
    expect(gainSeconds).toBeCloseTo((600 - secondsToLoad) * saved, 6);
    expect(loaded(0.01)).toMatchObject({ copiesToLoad: 0, copiesToDrop: 0, gainSeconds: 0 });
  });

  test('layers are loaded one after the other: each gains for the time that is left then', () => {
    const [layer] = cluster(hot).layers;
    const layers = [0, 1, 2, 3].map((number) => ({ ...layer!, layer: number }));
    const wide = cluster(hot).workers.map((worker) => ({ ...worker, memoryBytes: 1_200 }));
    const present = layers.map(() => cluster(hot).present[0]!);
    const limits = { loads: 8, bytesPerSecond: 1 };
    const planned = plan(cluster(hot, { workers: wide, layers, present, limits }));
    const { predicted, gainSeconds, secondsToLoad, copiesToLoad } = planned;
    // All of them take longer than the horizon; none does by itself.
    expect(secondsToLoad).toBe(copiesToLoad * 100);
    expect(secondsToLoad).toBeGreaterThan(600);
    const saved = predicted.present[0]!.peak - predicted.target[0]!.peak;
    expect(gainSeconds).toBeGreaterThan(0);
    expect(gainSeconds).toBeLessThan(600 * saved);
    expect(plan(cluster(hot, { workers: wide, layers, present: planned.target, limits }))).toMatchObject({
      copiesToLoad: 0,
    });
  });

  test('what pays layer by layer, but not all together within the horizon, does not move', () => {
    const [layer] = cluster(hot).layers;
    const moved = (count: number) => {
      const layers = Array.from({ length: count }, (_, number) => ({ ...layer!, layer: number }));
      const workers = cluster(hot).workers.map((worker) => ({
        ...{ ...worker, memoryBytes: count * 300, loadBytesPerSecond: 10 },
      }));
      const present = layers.map(() => cluster(hot).present[0]!);
      const limits = { loads: 8, bytesPerSecond: 0.53 };
      return plan(cluster(hot, { workers, layers, present, limits }));
    };
    expect(moved(1).copiesToLoad).toBeGreaterThan(0);
    expect(moved(8)).toMatchObject({ copiesToLoad: 0, copiesToDrop: 0, gainSeconds: 0, costSeconds: 0 });
  });

  test('tells which copies every expert must have, whatever that gains', () => {
    const even = cluster(Array(8).fill(100), { copiesMin: 2 });
    const workers = even.workers.map((worker) => ({ ...worker, memoryBytes: 800 }));
    expect(plan({ ...even, workers })).toMatchObject({ copiesToLoad: 8, copiesRequired: 8, gainSeconds: 0 });
    expect(plan(cluster(hot))).toMatchObject({ copiesRequired: 0 });
  });

  test('experts that are chosen together come to one worker where links are slow, and it stays even', () => {
    // Tokens choose 0 and 1, 2 and 3, 4 and 5, or 6 and 7, which are dealt to different workers.
    const even = cluster(Array(8).fill(100));
    const layers = even.layers.map((layer) => ({
      ...layer,
      choices: Uint32Array.of(0, 1, 2, 3, 4, 5, 6, 7),
    }));
    const slow = plan({ ...even, layers, crossingSeconds: 1e-3 });
    const [before, after] = [slow.predicted.present[0]!, slow.predicted.target[0]!];
    expect([before.workersPerToken, after.workersPerToken]).toEqual([2, 1]);
    expect(after.imbalance).toBeCloseTo(0, 9);
    for (const pair of [0, 2, 4, 6]) expect(slow.target[0]![pair]).toEqual(slow.target[0]![pair + 1]);
    expect(slow.netGainSeconds).toBeGreaterThan(0);
    expect(plan({ ...even, layers })).toMatchObject({ copiesToLoad: 0, gainSeconds: 0 });
  });

  test('nothing moves for noise', () => {
    expect(plan(cluster([101, 100, 100, 99, 100, 101, 99, 100])).copiesToLoad).toBe(0);
  });

  test('two copies that would take turns on a worker for ever: neither relieves the busiest, and the plan ends', () => {
    const loads = [
      [
        3.315961378554271, 1.567594900979262, 3.350719230788742, 1.126752739353299, 2.525541151584336,
        7.727360058451759, 2.418922364860922, 1.14243496560668,
      ],
      [
        1.860154488884658, 2.86489323008325, 1.899655228026499, 1.286702126189152, 7.733850355845759,
        1.286861964762037, 7.253648554153406, 1.236536438604965,
      ],
      [
        2.273304763561476, 2.218580498224747, 2.401639609156562, 3.28288625339153, 2.099398715225041,
        3.539508823353119, 2.119106335720176, 2.699423139775179,
      ],
    ];
    const input: PlanInput = {
      workers: [
        {
          name: 'w0',
          host: 'host-0',
          memoryBytes: 11264,
          rowsPerSecond: 42147.55190887806,
          loadBytesPerSecond: 38121.98216810381,
        },
        {
          name: 'w1',
          host: 'host-2',
          memoryBytes: 16384,
          rowsPerSecond: 116680.3552691419,
          loadBytesPerSecond: 38121.98216810381,
        },
        {
          name: 'w2',
          host: 'host-0',
          memoryBytes: 11264,
          rowsPerSecond: 10320.02670277927,
          loadBytesPerSecond: 24657.09842455696,
        },
        {
          name: 'w3',
          host: 'host-3',
          memoryBytes: 11264,
          rowsPerSecond: 65933.25432795301,
          loadBytesPerSecond: 185720.8096649038,
        },
        {
          name: 'w4',
          host: 'host-0',
          memoryBytes: 11264,
          rowsPerSecond: 42147.55190887806,
          loadBytesPerSecond: 3884.346811729649,
        },
        {
          name: 'w5',
          host: 'host-3',
          memoryBytes: 16384,
          rowsPerSecond: 18361.84948980311,
          loadBytesPerSecond: 893155.7225148176,
        },
      ],
      layers: loads.map((of, layer) => ({
        layer,
        expertBytes: 1024,
        loads: Float64Array.from(of),
        choices: null,
      })),
      topK: 2,
      present: [
        [[3], [1], [4, 5], [3], [2, 4], [0, 1, 5], [0, 2], [1]],
        [[2, 3], [3], [1, 4], [5], [1], [0, 1], [0, 4], [3]],
        [[3, 4], [1, 4], [0, 1], [1], [0, 5], [3], [2, 4], [4, 5]],
      ],
      copiesMin: 1,
      replicaSlots: 0,
      limits: usualLimits,
      horizonSeconds: 3600,
      crossingSeconds: 0,
    };
    const { predicted } = plan(input);
    expect(peaks(predicted.target)).toBeLessThanOrEqual(peaks(predicted.present));
  });

  test('without any load the experts that nobody holds are dealt evenly', () => {
    const { target } = plan(cluster(Array(8).fill(0), { present: [Array(8).fill([])] }));
    expect(bytesHeld(cluster(hot), target)).toEqual([200, 200, 200, 200]);
  });

  test('the experts of a worker that is gone go to one that is idle, and nothing else moves', () => {
    const loads = Array(8).fill(100);
    const present = [loads.map((_, expert) => (expert % 4 === 3 ? [] : [expert % 4]))];
    const { target, copiesToLoad, predicted } = plan(cluster(loads, { present, replicaSlots: 0 }));
    expect(predicted.present[0]!.missing).toBe(2);
    expect(copiesToLoad).toBe(2);
    for (const [expert, holders] of present[0]!.entries())
      if (holders.length > 0) expect(target[0]![expert]).toEqual(holders);
  });

  test('a worker with less memory than it holds gives up what others have too', () => {
    const input = cluster(Array(8).fill(100), { present: [[[0, 1], [0, 1], [0], [1], [2], [2], [3], [3]]] });
    const workers = input.workers.map((worker) => ({ ...worker, memoryBytes: 200 }));
    const { target } = plan({ ...input, workers });
    expect(target[0]![2]).toEqual([0]);
    expect(bytesHeld(input, target)).toEqual([200, 200, 200, 200]);
  });

  test('a missing expert takes the place of a copy that is not the last one', () => {
    const input = cluster([100, 0, 5], { present: [[[0, 1], [0, 1], []]], replicaSlots: 0 });
    const workers = input.workers.slice(0, 2).map((worker) => ({ ...worker, memoryBytes: 200 }));
    expect(plan({ ...input, workers }).target[0]!.map(({ length }) => length)).toContain(2);
  });
});

describe('what cannot be planned is refused with numbers', () => {
  const refusal = (input: PlanInput) => {
    try {
      plan(input);
    } catch (error) {
      return error;
    }
    return null;
  };
  const loads = Array(8).fill(1);

  test('too little memory for all experts', () => {
    const workers = cluster(loads).workers.map((worker) => ({ ...worker, memoryBytes: 199 }));
    expect(refusal(cluster(loads, { workers }))).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message: 'the experts have 800 bytes; allowed: at most 796, the memory of the 4 workers',
    });
  });

  test('memory that is enough in all and not on any one', () => {
    const workers = cluster(loads).workers.map((worker, index) => ({
      ...worker,
      memoryBytes: index ? 299 : 199,
    }));
    const present = [loads.map(() => [])];
    expect(refusal(cluster(loads, { workers, present }))).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message: expect.stringMatching(
        /^layer 0 expert 7 has 100 bytes and fits on none of the 4 workers without it: the most that is left on one of them is 99 bytes$/,
      ),
    });
  });

  test('more copies than workers', () => {
    expect(refusal(cluster(loads, { copiesMin: 5 }))).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message: expect.stringContaining('copiesMin is 5; allowed: at most 4'),
    });
  });

  test.each([
    ['workers', { workers: [] }],
    ['horizonSeconds', { horizonSeconds: 0 }],
    ['replicaSlots', { replicaSlots: -1 }],
    ['topK', { topK: 0 }],
    ['copiesMin', { copiesMin: 0.5 }],
    [
      'a load of layer 0',
      { layers: [{ layer: 0, expertBytes: 1, loads: Float64Array.of(Number.NaN), choices: null }] },
    ],
    ['workers of layer 0 expert 0', { present: [[[4], ...loads.slice(1).map(() => [0])]] }],
    ['workers of layer 0 expert 0', { present: [[[1, 1], ...loads.slice(1).map(() => [0])]] }],
  ])('%s', (field, changes) => {
    expect(refusal(cluster(loads, changes))).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(field),
    });
  });
});

/** Every placement that memory and slots allow, of a cluster with one layer. */
function allCopies(input: PlanInput): Copies[] {
  const { workers, layers, present, replicaSlots } = input;
  const experts = layers[0]!.loads.length;
  const subsets = Array.from({ length: 2 ** workers.length - 1 }, (_, set) =>
    [...workers.keys()].filter((worker) => ((set + 1) >> worker) & 1),
  );
  let all: number[][][] = [[]];
  for (let expert = 0; expert < experts; expert += 1)
    all = all.flatMap((copies) => subsets.map((holders) => [...copies, holders]));
  const count = (copies: readonly (readonly number[])[]) => copies.flat().length;
  const most = Math.max(experts + (replicaSlots ?? Number.POSITIVE_INFINITY), count(present[0]!));
  return all
    .filter((copies) => count(copies) <= most)
    .map((copies) => [copies])
    .filter((copies) =>
      bytesHeld(input, copies).every((bytes, worker) => bytes <= workers[worker]!.memoryBytes),
    );
}
