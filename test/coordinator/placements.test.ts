import { describe, expect, test } from '@jest/globals';
import { groupByLayer } from '../../services/common/layer-experts.js';
import { allExperts, expertBytes, Scene, total } from './scene.js';

describe('placements', () => {
  test('a router is told the layers that changed since the one that it knows, and all of another term', () => {
    const scene = new Scene({ workers: 2 });
    scene.worker('w0');
    scene.worker('w1');
    const { cluster } = scene;
    const { term, epoch } = cluster;
    expect(cluster.placement().layers).toHaveLength(2);
    expect(cluster.placement({ term, epoch }).layers).toEqual([]);
    const workers = ['w0', 'w1'];
    // Expert 0 of layer 0 gets a second copy; layer 1 stays as it is.
    cluster.plans.goTo({
      workers,
      layers: [{ layer: 0, copies: [2, 1, 1, 1, 1, 1, 1, 1], workers: [0, 1, 1, 0, 1, 0, 1, 0, 1] }],
    });
    scene.settle(null);
    expect(cluster.epoch).toBeGreaterThan(epoch);
    expect(cluster.placement({ term, epoch })).toEqual({
      workers,
      layers: [{ layer: 0, copies: [2, 1, 1, 1, 1, 1, 1, 1], workers: [0, 1, 1, 0, 1, 0, 1, 0, 1] }],
    });
    expect(cluster.placement({ term: term - 1, epoch: cluster.epoch }).layers).toHaveLength(2);
  });

  test('with copies of 2 and three workers, each expert is on two, and of a worker that is gone on two again', () => {
    const scene = new Scene({ workers: 3, copies: 2 });
    const members = ['w0', 'w1', 'w2'].map((name) => scene.worker(name));
    const copies = () => scene.cluster.placement().layers!.flatMap(({ copies }) => copies);
    expect(copies()).toEqual(new Array(total).fill(2));
    scene.cluster.end(members[1]!, 'killed', 0);
    scene.settle(null);
    // Loads of experts that serve already have a pace.
    scene.pass(1_000);
    expect(copies()).toEqual(new Array(total).fill(2));
    expect(scene.cluster.view.ready).toBe(true);
  });

  test('a copy that serves no more is kept until no router uses an epoch in which it served', () => {
    const scene = new Scene({ workers: 2 });
    scene.worker('w0');
    scene.worker('w1');
    const router = scene.router('r0');
    const { term, epoch } = scene.cluster;
    scene.uses(router, term, epoch);
    scene.cluster.mark('w0', 'DRAINED', 0);
    scene.settle(null);
    expect(scene.cluster.epoch).toBeGreaterThan(epoch);
    const counts = () => scene.cluster.view.nodes!.find(({ name }) => name === 'w0');
    expect(counts()).toMatchObject({ serving: 0, draining: total / 2, mark: 'DRAINED' });
    expect(scene.cluster.copies()[0]).toEqual({
      ...{ layer: 0, expert: 0, target: ['w1'] },
      copies: [
        { worker: 'w0', state: 'draining' },
        { worker: 'w1', state: 'serving' },
      ],
    });
    expect(scene.told.get('w0')).toHaveLength(total / 2);
    scene.uses(router, term, scene.cluster.epoch);
    expect(counts()).toMatchObject({ serving: 0, draining: 0 });
    expect(scene.told.get('w0')).toEqual([]);
  });

  test('experts that would be nowhere are loaded by workers that are drained', () => {
    const scene = new Scene({ workers: 3 });
    const members = ['w0', 'w1', 'w2'].map((name) => scene.worker(name));
    const holders = () =>
      scene.cluster.view.nodes!.filter(({ serving }) => serving! > 0).map(({ name }) => name);
    for (const name of ['w0', 'w1']) scene.cluster.mark(name, 'DRAINED', scene.nowMs);
    scene.settle(null);
    for (let seconds = 0; seconds < 3; seconds += 1) scene.pass(1_000);
    expect(holders()).toEqual(['w2']);
    scene.cluster.end(members[2]!, 'killed', scene.nowMs);
    scene.settle(null);
    for (let seconds = 0; seconds < 3; seconds += 1) scene.pass(1_000);
    expect(scene.cluster.view.ready).toBe(true);
    expect(holders()).toEqual(['w0', 'w1']);
    scene.worker('w2');
    for (let seconds = 0; seconds < 3; seconds += 1) scene.pass(1_000);
    expect(holders()).toEqual(['w2']);
  });

  test('a coordinator that begins with a drained worker alone places all there: it would be nowhere else', () => {
    const scene = new Scene({ workers: 2 });
    scene.worker('w0', { term: 1 });
    scene.cluster.mark('w0', 'DRAINED', 0);
    scene.pass(1_000);
    scene.pass(1_000);
    expect(scene.cluster.view).toMatchObject({ ready: true, nodes: [{ name: 'w0', serving: total }] });
    scene.worker('w1');
    for (let seconds = 0; seconds < 3; seconds += 1) scene.pass(1_000);
    expect(scene.cluster.view.nodes).toMatchObject([{ serving: 0 }, { serving: total }]);
  });

  test('a coordinator that begins keeps what drained workers hold and nobody else has room for', () => {
    const scene = new Scene({ workers: 3 });
    const half = (odd: number) => allExperts.filter(({ expert }) => expert % 2 === odd);
    const memoryBytes = (total / 2) * expertBytes;
    scene.worker('w0', { term: 1, held: groupByLayer(half(0)), memoryBytes });
    scene.cluster.mark('w0', 'DRAINED', 0);
    scene.worker('w1', { term: 1, held: groupByLayer(half(1)), memoryBytes });
    expect(scene.cluster.view.ready).toBe(true);
    expect(scene.told.get('w0') ?? half(0)).toEqual(half(0));
    expect(scene.told.get('w1') ?? half(1)).toEqual(half(1));
  });

  test.each([0, 4, 7, 8])(
    'the room of a drained worker is for what is nowhere, beyond that %d copies, not for what has a place',
    (spare) => {
      const scene = new Scene({ workers: 3 });
      const memoryBytes = (total / 2) * expertBytes;
      scene.worker('w0', { memoryBytes });
      scene.worker('w1', { memoryBytes: memoryBytes + spare * expertBytes });
      const last = scene.worker('w2', { memoryBytes });
      scene.cluster.mark('w1', 'DRAINED', scene.nowMs);
      scene.settle(null);
      for (let seconds = 0; seconds < 5; seconds += 1) scene.pass(1_000);
      expect(scene.told.get('w1')).toEqual([]);
      scene.cluster.end(last, 'killed', scene.nowMs);
      scene.settle(null);
      for (let seconds = 0; seconds < 5; seconds += 1) scene.pass(1_000);
      expect(scene.cluster.view).toMatchObject({ ready: true, reason: '' });
      expect(scene.told.get('w1')).toHaveLength(total / 2);
    },
  );

  test('what has no room while copies leave a drained worker gets it when they are gone', () => {
    const scene = new Scene({ workers: 3, rebalanceBytesPerSecond: expertBytes / 2 });
    const memoryBytes = (total / 2) * expertBytes;
    for (const name of ['w0', 'w1']) scene.worker(name, { memoryBytes });
    const last = scene.worker('w2', { memoryBytes });
    const router = scene.router('r0');
    const go = (seconds: number) => {
      for (let second = 0; second < seconds; second += 1) {
        scene.uses(router, 1, scene.cluster.epoch);
        scene.pass(1_000);
      }
    };
    go(3);
    scene.cluster.mark('w1', 'DRAINED', scene.nowMs);
    scene.settle(null);
    go(4);
    scene.cluster.end(last, 'killed', scene.nowMs);
    scene.settle(null);
    go(60);
    expect(scene.cluster.view).toMatchObject({ ready: true, reason: '' });
  });

  test('the place of a name that nobody remembers is taken by the next: the table does not grow with those that come and go', () => {
    const scene = new Scene();
    scene.worker('keeper');
    for (let round = 0; round < 5; round += 1) scene.forget(scene.worker(`guest-${round}`));
    scene.worker('last');
    expect(scene.cluster.placement().workers).toEqual(['keeper', 'last']);
    expect(scene.cluster.view.nodes!.map(({ name }) => name)).toEqual(['keeper', 'last']);
  });

  test('a name keeps its place as long as an error may have to name it', () => {
    const scene = new Scene({ workers: 2 });
    const half = (total / 2) * expertBytes;
    const lost = scene.worker('w0', { memoryBytes: half });
    scene.worker('w1', { memoryBytes: half });
    scene.cluster.end(lost, 'killed', 0);
    scene.settle(null);
    for (let seconds = 0; seconds < 6; seconds += 1) scene.pass(1_000);
    scene.worker('w2', { memoryBytes: 0 });
    expect(scene.cluster.placement().workers).toEqual(['w0', 'w1', 'w2']);
    expect(scene.cluster.view.reason).toContain('on worker w0: the worker is dead');
  });
});
