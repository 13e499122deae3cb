import { describe, expect, test } from '@jest/globals';
import type { ClusterDescription } from '../../services/client/index.js';
import { switchyard } from '../support/cli.js';
import { connect, Service } from '../support/services.js';
import { until } from '../support/until.js';

/** What `switchyard status` tells of the cluster through this process. */
async function status(service: Service): Promise<NonNullable<ClusterDescription['view']>> {
  const { stdout } = await switchyard(['status', '--json', '--address', await service.address]);
  return (JSON.parse(stdout) as ClusterDescription).view!;
}

/** Until status, /readyz and health of the process say the same, and it is this. */
async function untilAllSay(service: Service, ready: boolean, reason: string | RegExp): Promise<void> {
  await until(
    () => service.readiness(),
    (now) =>
      now.ready === ready && (typeof reason === 'string' ? now.reason === reason : reason.test(now.reason)),
  );
  const view = await status(service);
  const now = await service.readiness();
  expect({ ready: view.ready, reason: view.reason }).toEqual({ ready: now.ready, reason: now.reason });
  expect(now.status).toBe(ready ? 200 : 503);
  expect(await service.health()).toBe(ready ? 'SERVING' : 'NOT_SERVING');
}

const stateOf = async (of: Service, name: string) =>
  (await status(of)).nodes.find((node) => node.name === name);

test('status, /readyz and health say the same of a coordinator and of every router', async () => {
  const head = new Service('coordinator', { preset: 'tiny', workers: 2 });
  const coordinator = await head.address;
  const router = new Service('router', { coordinator, name: 'router-a' });
  const waiting = '0 of the 2 expected workers have joined, so no expert is placed yet';
  for (const service of [head, router]) await untilAllSay(service, false, waiting);
  await until(
    () => stateOf(head, 'router-a'),
    (node) => node?.state === 'JOINING' && node.reason === waiting,
  );

  new Service('worker', { coordinator, name: 'worker-a' });
  // The second one joins, and no router reaches it.
  const cutOff = new Service('worker', { coordinator, name: 'worker-b', advertiseHost: 'node-b.invalid' });
  for (const service of [head, router]) await untilAllSay(service, false, /no link to worker worker-b: /);
  await until(
    () => stateOf(head, 'router-a'),
    (node) => node?.state === 'JOINING' && node.reason.includes('no link to worker worker-b'),
  );

  await cutOff.process.stop(20_000);
  new Service('worker', { coordinator, name: 'worker-b' });
  for (const service of [head, router]) await untilAllSay(service, true, '');
  for (const name of ['coordinator', 'router-a', 'worker-a', 'worker-b']) {
    await until(
      () => stateOf(head, name),
      (node) => node?.state === 'READY' && node.reason === '',
    );
  }
});

describe('a worker that has joined', () => {
  test('is ready, by /readyz and health alike, while the cluster waits for others', async () => {
    const coordinator = await new Service('coordinator', { preset: 'tiny', workers: 2 }).address;
    const worker = new Service('worker', { coordinator });
    await until(
      () => worker.readiness(),
      ({ ready }) => ready,
    );
    expect(await worker.health()).toBe('SERVING');
    expect(worker.events('assigned')).toEqual([]);
    const { view } = await (await connect(coordinator)).describeCluster();
    expect(view?.nodes.find(({ role }) => role === 'WORKER')).toMatchObject({
      state: 'READY',
      reason: 'no expert is placed yet',
    });
  });

  test('is ready beside one that holds all, and when it holds all itself', async () => {
    const coordinator = await new Service('coordinator', { preset: 'tiny', workers: 1 }).address;
    const holder = new Service('worker', { coordinator });
    await (await connect(coordinator)).waitUntilReady(60_000);
    const spare = new Service('worker', { coordinator });
    // One that has joined is ready, is not while it loads what it is given then, and is again.
    for (const worker of [holder, spare]) {
      await until(async () => (await worker.readiness()).ready && (await worker.health()) === 'SERVING');
    }
    await holder.process.stop(20_000);
    await until(
      () => spare.events('experts-loaded'),
      (events) => events.at(-1)?.experts === 16,
    );
    expect(await spare.readiness()).toEqual({ status: 200, ready: true, reason: '' });
  });

  test('is not ready before it has joined, by /readyz and health alike', async () => {
    const worker = new Service('worker', { coordinator: '127.0.0.1:1' });
    expect(await worker.readiness()).toMatchObject({ status: 503, ready: false });
    expect(await worker.health()).toBe('NOT_SERVING');
  });
});
