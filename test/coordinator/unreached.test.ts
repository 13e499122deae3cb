import { describe, expect, test } from '@jest/globals';
import { groupByLayer } from '../../services/common/layer-experts.js';
import type { Member } from '../../services/coordinator/membership.js';
import type { PlacementOptions } from '../../services/coordinator/plans.js';
import { expertBytes, Scene, total } from './scene.js';
import { tinyModel } from './support.js';

describe('a worker that no router reaches', () => {
  const holders = (scene: Scene) =>
    scene.cluster.view.nodes!.filter(({ serving }) => serving! > 0).map(({ name }) => name);
  const latest = (scene: Scene, router: Member, links: Record<string, boolean> | null = null) =>
    scene.uses(router, scene.cluster.term, scene.cluster.epoch, [], links);

  test('has its experts elsewhere after ten seconds, and gets some again when one reaches it', () => {
    const scene = new Scene({ workers: 2 });
    for (const name of ['w0', 'w1']) scene.worker(name);
    const router = scene.router('r0');
    latest(scene, router, { w0: true, w1: false });
    for (let seconds = 0; seconds < 9; seconds += 1) scene.pass(1_000);
    expect([holders(scene), scene.reach]).toEqual([['w0', 'w1'], []]);
    for (let seconds = 0; seconds < 3; seconds += 1) scene.pass(1_000);
    expect(scene.reach).toEqual([['w1', 'no router reaches it; router r0: refused']]);
    latest(scene, router);
    expect(holders(scene)).toEqual(['w0']);
    expect(scene.cluster.view.nodes).toMatchObject([
      { name: 'w0', state: 'READY', serving: total },
      { name: 'w1', state: 'JOINING', reason: 'no router reaches it; router r0: refused', experts: 0 },
      { name: 'r0' },
    ]);
    for (let seconds = 0; seconds < 20; seconds += 1) scene.pass(1_000);
    expect(holders(scene)).toEqual(['w0']);
    latest(scene, router, { w0: true, w1: true });
    scene.pass(1_000);
    expect(scene.reach.at(-1)).toEqual(['w1', '']);
    scene.cluster.end(scene.cluster.members()[0]!, 'killed', scene.nowMs);
    scene.settle(null);
    expect(holders(scene)).toEqual(['w1']);
  });

  test('keeps its experts as long as one of several routers reaches it, while none tells of it, while none is there, and before it has any', () => {
    const scene = new Scene({ workers: 2 });
    for (const name of ['w0', 'w1']) scene.worker(name);
    for (let seconds = 0; seconds < 20; seconds += 1) scene.pass(1_000);
    const [one, other] = ['r0', 'r1'].map((name) => scene.router(name)) as [Member, Member];
    latest(scene, one, { w0: true });
    for (let seconds = 0; seconds < 20; seconds += 1) scene.pass(1_000);
    latest(scene, one, { w0: true, w1: false });
    latest(scene, other, { w0: false, w1: true });
    for (let seconds = 0; seconds < 20; seconds += 1) scene.pass(1_000);
    expect([holders(scene), scene.reach]).toEqual([['w0', 'w1'], []]);
  });

  test('keeps what fits nowhere else, and everything where none is reached', () => {
    const scene = new Scene({ workers: 2 });
    scene.worker('w0', { memoryBytes: expertBytes * (total / 2 + 1) });
    scene.worker('w1');
    const router = scene.router('r0');
    latest(scene, router, { w0: true, w1: false });
    for (let seconds = 0; seconds < 12; seconds += 1) scene.pass(1_000);
    latest(scene, router);
    expect(scene.cluster.view).toMatchObject({ ready: true });
    expect(scene.cluster.view.nodes).toMatchObject([
      { serving: total / 2 + 1 },
      { serving: total / 2 - 1 },
      {},
    ]);
    latest(scene, router, { w0: false, w1: false });
    const { epoch } = scene.cluster;
    for (let seconds = 0; seconds < 12; seconds += 1) scene.pass(1_000);
    latest(scene, router);
    expect(scene.cluster.epoch).toBe(epoch);
  });

  describe('where all of them are out of reach for a while', () => {
    const names = ['w0', 'w1', 'w2'];
    const start = (placement: Partial<PlacementOptions> = {}) => {
      const scene = new Scene({ workers: 3, ...placement });
      const members = names.map((name) => scene.worker(name));
      const router = scene.router('r0');
      const go = (reached: string[], seconds: number) => {
        for (let second = 0; second < seconds; second += 1) {
          latest(scene, router, Object.fromEntries(names.map((name) => [name, reached.includes(name)])));
          scene.pass(1_000);
        }
      };
      go(names, 1);
      return { scene, members, go };
    };

    test.each([
      { goes: [[]], back: [['w0'], ['w0', 'w1'], names] },
      { goes: [['w1', 'w2'], ['w2'], []], back: [names] },
    ])('no expert moves, in whatever order they go and come back: $goes, $back', ({ goes, back }) => {
      const { scene, go } = start();
      const { target } = scene.cluster.plans.placement;
      for (const reached of goes) go(reached, 1);
      go([], 15);
      for (const reached of back) go(reached, 1);
      go(names, 20);
      expect(scene.reach).toEqual([]);
      expect(scene.cluster.plans.placement.target).toEqual(target);
    });

    test('no expert moves though one joins again meanwhile', () => {
      const { scene, members, go } = start();
      const { target } = scene.cluster.plans.placement;
      go([], 12);
      const held = groupByLayer(scene.told.get('w0')!);
      scene.cluster.end(members[0]!, 'its stream broke', scene.nowMs);
      scene.worker('w0', { held, term: 1 });
      go([], 3);
      expect(scene.cluster.plans.placement.target).toEqual(target);
    });
  });

  test('has its experts loaded elsewhere at once, as one that died, whatever the pace of loads', () => {
    const scene = new Scene({ workers: 2, rebalanceBytesPerSecond: expertBytes });
    for (const name of ['w0', 'w1']) scene.worker(name);
    const router = scene.router('r0');
    for (let seconds = 0; seconds < 12; seconds += 1) {
      latest(scene, router, { w0: true, w1: false });
      scene.pass(1_000);
    }
    latest(scene, router);
    expect(holders(scene)).toEqual(['w0']);
  });

  test('is named as that to an operator who wants experts there', () => {
    const scene = new Scene({ workers: 2 });
    for (const name of ['w0', 'w1']) scene.worker(name);
    latest(scene, scene.router('r0'), { w0: true, w1: false });
    for (let seconds = 0; seconds < 12; seconds += 1) scene.pass(1_000);
    const { layer, experts } = tinyModel.layers[0]!;
    const zeros = new Array<number>(experts).fill(0);
    const wanted = { workers: ['w1'], layers: [{ layer, copies: zeros.map(() => 1), workers: zeros }] };
    expect(() => scene.cluster.goTo(wanted, scene.nowMs)).toThrow(
      'workers of layer 0 expert 0 is "w1"; allowed: different ones of w0; no router reaches w1',
    );
  });

  test('is judged by the time in which this coordinator did not stand still', () => {
    const scene = new Scene({ workers: 2 });
    for (const name of ['w0', 'w1']) scene.worker(name);
    latest(scene, scene.router('r0'), { w0: true, w1: false });
    scene.pass(1_000);
    scene.nowMs += 60_000;
    scene.pass(1_000);
    expect(scene.reach).toEqual([]);
  });
});
