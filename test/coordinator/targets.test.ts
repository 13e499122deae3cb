import { describe, expect, test } from '@jest/globals';
import { allExperts, expertBytes, Scene, total } from './scene.js';
import { hello } from './support.js';

describe('plans', () => {
  test('one that is made by itself and fails is told, and copies stay', async () => {
    const plan = () => Promise.reject(new Error('no plan today'));
    const scene = new Scene({ rebalanceSeconds: 60, plan });
    scene.worker('w0');
    scene.worker('w1');
    await Promise.resolve();
    await Promise.resolve();
    expect(scene.failures[0]).toContain('no plan today');
    expect(scene.cluster.view.ready).toBe(true);
  });

  test('an operator who asks for one is no reason to begin', async () => {
    const { cluster } = new Scene();
    cluster.join(hello('w0'), 0);
    await expect(async () => cluster.rebalance(0)).rejects.toMatchObject({ code: 'NOT_READY' });
    expect(() => cluster.goTo({ workers: [], layers: [] }, 0)).toThrow('no expert is placed yet');
    expect(cluster.plans.started).toBe(false);
  });

  test('an operator is told that there is none to be made without workers', async () => {
    const scene = new Scene();
    await expect(scene.cluster.plans.rebalance(0)).rejects.toMatchObject({ code: 'NOT_READY' });
    const member = scene.worker('w0');
    scene.cluster.end(member, 'killed', 0);
    scene.settle(null);
    await expect(scene.cluster.plans.rebalance(0)).rejects.toMatchObject({
      code: 'NOT_READY',
      message: 'there is no worker that may have copies',
    });
  });
});

describe('copies where an operator says', () => {
  const scene = () => {
    const made = new Scene({ workers: 2 });
    made.worker('w0');
    made.worker('w1', { memoryBytes: total * expertBytes });
    return made;
  };
  const every = (workers: number[]) => ({
    copies: new Array(8).fill(workers.length),
    workers: Array.from({ length: 8 }, () => workers).flat(),
  });

  test('are brought there', () => {
    const made = scene();
    const layers = [0, 1].map((layer) => ({ layer, ...every([0]) }));
    const answer = made.cluster.plans.goTo({ workers: ['w1'], layers });
    expect(answer).toMatchObject({ toLoad: total / 2, toDrop: total / 2 });
    made.settle(null);
    expect(made.told.get('w1')).toEqual(allExperts);
    expect(made.told.get('w0')).toEqual([]);
  });

  test.each([
    ['a worker that is not there', ['w7'], every([0]), 'workers of layer 0 expert 0'],
    [
      'no worker at all',
      ['w0'],
      { copies: new Array(8).fill(0), workers: [] },
      'workers of layer 0 expert 0',
    ],
    ['one worker twice', ['w0', 'w0'], every([0, 1]), 'workers of layer 0 expert 0'],
    ['an index beyond the names', ['w0'], every([3]), 'workers of layer 0 expert 0'],
    [
      'no layer of the model',
      ['w0'],
      { ...every([0]), layer: 7 },
      'layer is 7; allowed: those of the model: 0, 1',
    ],
    ['other experts than the layer has', ['w0'], { copies: [1], workers: [0] }, 'copies'],
  ])('%s is refused, and nothing moves', (_, workers, copies, field) => {
    const made = scene();
    const before = made.cluster.placement();
    expect(() => made.cluster.plans.goTo({ workers, layers: [{ layer: 0, ...copies }] })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(field) }),
    );
    made.settle(null);
    expect(made.cluster.placement()).toEqual(before);
  });

  test('a worker that is drained is named as drained, and one that is cordoned gets nothing new', () => {
    const made = scene();
    const layers = [0, 1].map((layer) => ({ layer, ...every([0]) }));
    const goTo = () => made.cluster.plans.goTo({ workers: ['w1'], layers });
    made.cluster.mark('w1', 'CORDONED', 0);
    made.settle(null);
    expect(goTo()).toMatchObject({ toLoad: 0, toDrop: 0 });
    made.cluster.mark('w1', 'DRAINED', 0);
    made.settle(null);
    expect(goTo).toThrow(
      expect.objectContaining({
        code: 'INVALID_ARGUMENT',
        message: 'workers of layer 0 expert 0 is "w1"; allowed: different ones of w0; drained: w1',
      }),
    );
  });

  test('fewer copies than the coordinator keeps are refused as far as there are workers', () => {
    const made = new Scene({ workers: 2, copies: 2 });
    made.worker('w0');
    const last = made.worker('w1');
    const layers = [0, 1].map((layer) => ({ layer, ...every([0]) }));
    const goTo = () => made.cluster.plans.goTo({ workers: ['w0'], layers });
    expect(goTo).toThrow(
      expect.objectContaining({
        code: 'INVALID_ARGUMENT',
        message:
          "copies of layer 0 expert 0 is 1; allowed: at least 2: the coordinator's copies are 2, so plan with --copies 2",
      }),
    );
    made.cluster.end(last, 'killed', 0);
    made.settle(null);
    expect(goTo()).toMatchObject({ toLoad: 0, toDrop: 0 });
  });

  test('where memory is too small for all copies, those that there are must stay', () => {
    const made = new Scene({ workers: 2, copies: 2 });
    made.worker('w0', { memoryBytes: total * expertBytes });
    made.worker('w1', { memoryBytes: 3 * expertBytes });
    made.settle(null);
    const { plans } = made.cluster;
    expect(plans.lacking).not.toBeNull();
    const layers = [0, 1].map((layer) => ({ layer, ...every([0]) }));
    expect(() => plans.goTo({ workers: ['w0'], layers })).toThrow(
      /^copies of layer \d expert \d is 1; allowed: at least 2/,
    );
    const placed = plans.placement.target.map((holders) =>
      holders.map((slot) => plans.placement.names[slot]!),
    );
    const workers = ['w0', 'w1'];
    const same = [0, 1].map((layer) => {
      const held = placed.slice(layer * 8, layer * 8 + 8);
      return {
        layer,
        copies: held.map(({ length }) => length),
        workers: held.flat().map((name) => workers.indexOf(name)),
      };
    });
    expect(plans.goTo({ workers, layers: same })).toMatchObject({ toLoad: 0, toDrop: 0 });
  });

  test('more than a worker has memory for is refused', () => {
    const made = new Scene({ workers: 2 });
    made.worker('w0');
    made.worker('w1', { memoryBytes: 9 * expertBytes });
    const layers = [0, 1].map((layer) => ({ layer, ...every([0]) }));
    expect(() => made.cluster.plans.goTo({ workers: ['w1'], layers })).toThrow(
      expect.objectContaining({ message: 'copies on worker w1 is 16; allowed: at most 9, its memory' }),
    );
  });
});
