import { expect, test } from '@jest/globals';
import { RouterNode, WorkerNode } from '../../services/simulator/nodes.js';
import { scriptedWorld } from '../support/scripted-world.js';

test('a router heeds no older term, and no lower epoch of the same term', async () => {
  const { scenario, time, process, told, surroundings } = scriptedWorld();
  const { core } = new RouterNode(
    process('router'),
    { ...scenario.routers[0]!, host: 'router' },
    surroundings,
    () => {},
  );
  await time.run(1_000, () => false);
  const view = (term: number, epoch: number, worker: string) => {
    const placement = { workers: [worker], layers: [{ layer: 0, copies: [1, 1, 1], workers: [0, 0, 0] }] };
    return { view: { term, epoch, ready: true, nodes: [], placement } };
  };
  for (const [term, epoch, expected] of [
    [2, 5, [2, 5]],
    [2, 4, [2, 5]],
    [1, 9, [2, 5]],
    [2, 6, [2, 6]],
    [3, 1, [3, 1]],
    [2, 7, [3, 1]],
  ] as const) {
    await told(view(term, epoch, `worker-${term}-${epoch}`));
    expect(core.cluster.placement).toMatchObject({
      term: expected[0],
      epoch: expected[1],
      workers: [`worker-${expected.join('-')}`],
    });
    expect(core.cluster.view).toMatchObject({ term: expected[0], epoch: expected[1] });
  }
});

test('a worker heeds no older term, and no older assignment of the same term', async () => {
  const { scenario, time, process, told, surroundings } = scriptedWorld();
  const own = { ...scenario.workers[0]!, host: 'worker', expertsMax: 3 };
  const worker = new WorkerNode(process('worker'), own, surroundings, 10, () => {});
  await time.run(2_000, () => false);
  const assignment = (term: number, version: number, experts: number[]) => ({
    assignment: { term, version, leave: false, experts: [{ layer: 0, experts }] },
  });
  for (const [term, version, experts, expected] of [
    [2, 5, [0], ['0/0']],
    [2, 4, [1], ['0/0']],
    [1, 9, [2], ['0/0']],
    [2, 6, [0, 1], ['0/0', '0/1']],
    [3, 1, [2], ['0/2']],
    [2, 7, [0], ['0/2']],
  ] as const) {
    await told(assignment(term, version, [...experts]));
    await time.run(time.nowMs + 20_000, () => false);
    expect([...worker.holds()].sort()).toEqual(expected);
  }
});
