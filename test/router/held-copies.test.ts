import { expect, test } from '@jest/globals';
import { heldMsMax } from '../../services/router/placement.js';
import { RouterNode, WorkerNode } from '../../services/simulator/nodes.js';
import { linkKey } from '../../services/transport/link-key.js';
import { scriptedWorld } from '../support/scripted-world.js';

test('a router uses a copy that is to go as long as it does not reach the new one, says so, and gives it up in the end', async () => {
  const { scenario, process, heard, pass, told, surroundings } = scriptedWorld();
  const own = { ...scenario.workers[0]!, name: 'near', host: 'worker', expertsMax: 3 };
  const worker = new WorkerNode(process('near'), own, surroundings, 10, () => {});
  await pass(1_000);
  await told({
    assignment: { term: 1, version: 1, leave: false, experts: [{ layer: 0, experts: [0, 1, 2] }] },
  });
  await pass(1_000);
  expect(worker.holds().size).toBe(3);
  const { linkSecret } = heard[0]!.said[0]!.hello!;
  const { core } = new RouterNode(
    process('router'),
    { ...scenario.routers[0]!, name: 'router', host: 'router' },
    surroundings,
    () => {},
  );
  await pass(1_000);
  const workers = ['near', 'far'];
  await told({
    keys: { keys: workers.map((name) => ({ worker: name, key: linkKey(linkSecret, 'router') })) },
  });
  const nodes = workers.map((name) => {
    const address = name === 'near' ? 'worker:10' : 'nowhere:1';
    return { role: 'WORKER' as const, name, address, host: name, state: 'READY' as const };
  });
  const view = (epoch: number, holders: number[]) => {
    const placement = { workers, layers: [{ layer: 0, copies: [1, 1, 1], workers: holders }] };
    return { view: { term: 1, epoch, ready: true, nodes, placement } };
  };
  const report = () => heard.at(-1)!.said.findLast(({ router }) => router !== null)!.router!;

  await told(view(1, [0, 0, 0]));
  await pass(1_000);
  expect(core.readiness()).toEqual({ ready: true, reason: '' });
  await told(view(2, [0, 1, 0]));
  await pass(1_000);
  expect(core.readiness().ready).toBe(true);
  const held = [{ worker: 'near', experts: [{ layer: 0, experts: [1] }] }];
  expect(report()).toMatchObject({ epochInUse: 2, held });
  // What a chunk under way uses is told too, once, though the router is beyond it.
  const used = core.cluster.placement!;
  core.cluster.placements.inUse.enter(used);
  await told(view(3, [0, 1, 0]));
  await told(view(4, [0, 0, 0]));
  await pass(1_000);
  expect(core.cluster.placement).toMatchObject({ epoch: 4, held: [] });
  expect(report()).toMatchObject({ epochInUse: 2, held });
  core.cluster.placements.inUse.leave(used);
  await pass(1_000);
  expect(report()).toMatchObject({ epochInUse: 4, held: [] });

  await told(view(5, [0, 1, 0]));
  await pass(1_000);
  const other = core.cluster.placement!;
  core.cluster.placements.inUse.enter(other);
  await told(view(6, [0, 1, 0]));
  await pass(1_000);
  expect(core.cluster.placement).not.toBe(other);
  expect(report().held).toEqual(held);
  core.cluster.placements.inUse.leave(other);

  await pass(heldMsMax);
  expect(core.readiness()).toMatchObject({
    ready: false,
    reason: expect.stringContaining('layer 0 expert 1: no link to worker far'),
  });
  expect(report()).toMatchObject({ epochInUse: 6, held: [] });
});
