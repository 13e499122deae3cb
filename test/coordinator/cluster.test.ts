import { describe, expect, test } from '@jest/globals';
import { groupByLayer } from '../../services/common/layer-experts.js';
import type { Member } from '../../services/coordinator/membership.js';
import type { PlacementOptions } from '../../services/coordinator/plans.js';
import { plan } from '../../services/placement/plan.js';
import { allExperts, expertBytes, Scene, total } from './scene.js';
import { hello, tinyModel } from './support.js';

describe('terms', () => {
  test('a coordinator starts with the first, and takes one above any that a node was told by another', () => {
    const { cluster } = new Scene();
    expect(cluster.term).toBe(1);
    cluster.join(hello('w0', { term: 4 }), 0);
    expect(cluster.term).toBe(5);
    cluster.join(hello('w1', { term: 3 }), 0);
    expect(cluster.term).toBe(5);
    cluster.join(hello('r0', { role: 'ROUTER', term: 5 }), 0);
    expect(cluster.term).toBe(6);
  });

  test('a node that comes back with the term that this coordinator told it raises nothing', () => {
    const scene = new Scene();
    const first = scene.worker('w0');
    scene.cluster.end(first, 'its stream broke', 0);
    scene.worker('w0', { term: 1, held: groupByLayer(allExperts) });
    expect(scene.cluster.term).toBe(1);
  });
});

describe('a coordinator that starts anew', () => {
  test('takes up what workers hold: nothing is loaded, nothing is dropped, whoever joins first', () => {
    const scene = new Scene({ workers: 2 });
    const half = (odd: number) => allExperts.filter(({ expert }) => expert % 2 === odd);
    scene.worker('w1', { term: 1, held: groupByLayer(half(1)) });
    expect(scene.cluster.epoch).toBe(0);
    scene.worker('w0', { term: 1, held: groupByLayer(half(0)) });
    expect(scene.cluster.view).toMatchObject({ term: 2, ready: true });
    expect(scene.told.get('w0') ?? half(0)).toEqual(half(0));
    expect(scene.told.get('w1') ?? half(1)).toEqual(half(1));
  });

  test('tells every worker what it holds, so that what one still loads for the coordinator before it is not taken for held', () => {
    const scene = new Scene({ workers: 2 });
    const most = allExperts.slice(1);
    scene.worker('w0', { term: 1, held: groupByLayer(most) });
    scene.worker('w1', { term: 1, held: groupByLayer(allExperts) });
    expect(scene.told.get('w0')).toEqual(most);
    expect(scene.told.get('w1')).toEqual(allExperts);
  });

  test('with copies of 2, waits until all are held twice: nothing is loaded in the place of copies of which word is still to come', () => {
    const scene = new Scene({ workers: 4, copies: 2 });
    const all = groupByLayer(allExperts);
    scene.worker('w0', { term: 1, held: all });
    scene.worker('w1', { term: 1, held: groupByLayer(allExperts.slice(3)) });
    expect(scene.cluster.epoch).toBe(0);
    scene.worker('w2', { term: 1, held: all });
    expect(scene.cluster.view.ready).toBe(true);
    expect(scene.told.get('w1') ?? allExperts.slice(3)).toEqual(allExperts.slice(3));
  });

  test('waits for no more than a lease for workers if a member comes from one that had placed experts, for as many as are wanted otherwise', () => {
    for (const [term, epoch] of [
      [3, 1],
      [0, 0],
    ] as const) {
      const scene = new Scene({ workers: 3 });
      scene.router('r0', { term });
      scene.worker('w0');
      scene.pass(500);
      expect(scene.cluster.epoch).toBe(0);
      for (let passed = 0; passed < 1_000; passed += 500) scene.pass(500);
      expect(scene.cluster.epoch > 0).toBe(epoch > 0);
    }
  });

  test('waits for nobody once all experts are held, and a lease at most for those that hold the others', () => {
    const whole = new Scene({ workers: 5 });
    whole.worker('w0', { term: 1, held: groupByLayer(allExperts) });
    expect(whole.cluster.view.ready).toBe(true);

    const part = new Scene({ workers: 5 });
    const member = part.worker('w0', { term: 1, held: groupByLayer(allExperts.slice(3)) });
    expect(part.cluster.epoch).toBe(0);
    part.nowMs = 1_000;
    part.cluster.heard(member, part.nowMs);
    part.cluster.expire(part.nowMs, 1_000);
    part.settle(null);
    expect(part.cluster.view.ready).toBe(true);
    expect(part.told.get('w0')).toEqual(allExperts);
  });
});

describe('plans that are made by themselves', () => {
  /** How often a plan was asked for. */
  const counting = (placement: Partial<PlacementOptions>) => {
    const counted = { plans: 0 };
    const planOf: PlacementOptions['plan'] = async (input) => {
      counted.plans += 1;
      return plan(input);
    };
    return { counted, scene: new Scene({ rebalanceSeconds: 60, plan: planOf, ...placement }) };
  };
  const rows = Buffer.from(Uint32Array.from([900, 5, 5, 5, 5, 5, 5, 5]).buffer);
  const reports = (scene: Scene, router: Member) =>
    scene.uses(router, scene.cluster.term, scene.cluster.epoch, [{ layer: 0, rows }]);

  test('a joiner gets a share of what was dealt before there was any load', () => {
    const { counted, scene } = counting({});
    scene.worker('w0');
    scene.worker('w1');
    expect(counted.plans).toBe(1);
  });

  test('where copies are from before, they wait for loads to be measured, whoever joins', () => {
    const { counted, scene } = counting({ copies: 2, workers: 2 });
    const router = scene.router('r0');
    for (const name of ['w0', 'w1']) scene.worker(name, { term: 1, held: groupByLayer(allExperts) });
    scene.worker('w2', { term: 1, held: groupByLayer(allExperts.slice(4)) });
    scene.worker('w3');
    scene.pass(120_000);
    expect(counted.plans).toBe(0);
    reports(scene, router);
    scene.pass(1_000);
    expect(counted.plans).toBe(1);
  });

  test('where there were loads, they wait until there are some again', () => {
    const { counted, scene } = counting({});
    const router = scene.router('r0');
    scene.worker('w0');
    reports(scene, router);
    for (let hours = 0; hours < 2; hours += 1) scene.pass(3_600_000);
    const { plans } = counted;
    scene.worker('w1');
    scene.pass(120_000);
    expect(counted.plans).toBe(plans);
  });
});

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

describe('memory that workers of a host share', () => {
  const beside = 1_000_000;
  const shared = (experts: number, own = beside) => ({
    memorySharedBytes: experts * expertBytes + 2 * beside,
    memoryBytes: experts * expertBytes + 2 * beside - own,
  });
  const shown = (scene: Scene) => scene.cluster.view.nodes!.map(({ memoryBytes }) => memoryBytes);

  test('is what all of them leave beside their slabs and themselves, in equal parts', () => {
    const scene = new Scene({ workers: 2 });
    scene.worker('w0', shared(total));
    expect(shown(scene)).toEqual([total * expertBytes + beside]);
    scene.worker('w1', shared(total));
    expect(shown(scene)).toEqual([(total / 2) * expertBytes, (total / 2) * expertBytes]);
    expect(scene.cluster.view.ready).toBe(true);
  });

  test('fits one expert less than it seems: the reason says so', () => {
    const scene = new Scene({ workers: 2 });
    scene.worker('w0', shared(total - 1));
    scene.worker('w1', shared(total - 1));
    expect(scene.cluster.view.ready).toBe(false);
    expect(scene.cluster.view.reason).toContain('fits on none of the 2 workers');
  });

  test('is not that of workers elsewhere, nor of those with memory of their own', () => {
    const scene = new Scene();
    scene.worker('w0', shared(total));
    scene.worker('w1', { ...shared(total), host: 'other' });
    scene.worker('w2', { memoryBytes: 5 });
    expect(shown(scene)).toEqual([total * expertBytes + beside, total * expertBytes + beside, 5]);
  });

  test('is nothing where slabs and processes take all of it', () => {
    const scene = new Scene();
    for (const name of ['w0', 'w1', 'w2']) scene.worker(name, { memorySharedBytes: 100, memoryBytes: 50 });
    expect(shown(scene)).toEqual([0, 0, 0]);
  });
});

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
