import { describe, expect, test } from '@jest/globals';
import { groupByLayer } from '../../services/common/layer-experts.js';
import type { Member } from '../../services/coordinator/membership.js';
import type { PlacementOptions } from '../../services/coordinator/plans.js';
import { plan } from '../../services/placement/plan.js';
import { allExperts, Scene } from './scene.js';
import { hello } from './support.js';

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
