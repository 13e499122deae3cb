import { describe, expect, test } from '@jest/globals';
import { fixedPort } from '../../bench/fixed-port.js';
import { parseLine } from '../../services/cli/local-process.js';
import { testRows } from '../support/rows.js';
import { connect, Service } from '../support/services.js';
import { until } from '../support/until.js';

const names = ['coordinator', 'router', 'worker-a', 'worker-b'] as const;
type Name = (typeof names)[number];
type Cluster = Record<Name, Service>;

/** Everything but the coordinator joins when it comes; `first`: they are there before it. */
async function startCluster(first: 'coordinator' | 'nodes'): Promise<Cluster> {
  const port = await fixedPort();
  const coordinator = `127.0.0.1:${port}`;
  const head = () => new Service('coordinator', { preset: 'tiny', workers: 2, port });
  const early = first === 'coordinator' ? head() : null;
  await early?.address;
  const router = new Service('router', { coordinator });
  const nodes = {
    router,
    'worker-a': new Service('worker', { coordinator, name: 'worker-a' }),
    'worker-b': new Service('worker', { coordinator, name: 'worker-b' }),
  };
  if (early === null) {
    for (const node of Object.values(nodes)) {
      await until(
        () => node.events('coordinator-unreachable'),
        ({ length }) => length > 0,
      );
    }
  }
  const cluster = { coordinator: early ?? head(), ...nodes };
  const client = await connect(await cluster.coordinator.address);
  await client.waitUntilReady(60_000, 2);
  await (await client.forward(testRows(64, 256), { sequences: 4 })).collect();
  return cluster;
}

const orders: Name[][] = [
  ['coordinator', 'router', 'worker-a', 'worker-b'],
  ['worker-a', 'worker-b', 'router', 'coordinator'],
  ['router', 'coordinator', 'worker-b', 'worker-a'],
  ['worker-a', 'coordinator', 'worker-b', 'router'],
  ['coordinator', 'worker-a', 'worker-b', 'router'],
];

describe('the log of a cluster', () => {
  test.each(orders)(
    'warns of nothing when it is started, used, and stopped: %s, %s, %s, %s',
    async (...order) => {
      const cluster = await startCluster(order[0] === 'router' ? 'nodes' : 'coordinator');
      for (const name of order)
        expect(await cluster[name].process.stop(20_000)).toEqual({ code: 0, signal: null });
      for (const name of names) {
        const lines = cluster[name].lines;
        const loud = lines.filter((line) => !['info', 'debug'].includes(String(parseLine(line)?.level)));
        expect({ name, loud }).toEqual({ name, loud: [] });
        expect(cluster[name].events('stopping')).toEqual([expect.objectContaining({ reason: 'SIGTERM' })]);
        expect(cluster[name].events('stopped')).toEqual([expect.objectContaining({ reason: 'SIGTERM' })]);
        expect(lines.at(-1)).toContain('"event":"stopped"');
        for (const line of lines) {
          for (const key of ['role', 'name', 'pid', 'time', 'level', 'event'])
            expect({ line, times: line.split(`"${key}":`).length - 1 }).toEqual({ line, times: 1 });
        }
      }
    },
  );

  test('warns of a worker that is killed', async () => {
    const { coordinator, router, 'worker-a': worker } = await startCluster('coordinator');
    worker.process.kill('SIGKILL');
    for (const [service, event] of [
      [coordinator, 'node-dead'],
      [coordinator, 'not-ready'],
      [router, 'link-lost'],
    ] as const) {
      const [line] = await until(
        () => service.events(event),
        ({ length }) => length > 0,
      );
      expect(line).toMatchObject({ level: 'warn' });
    }
  });

  test('warns of a coordinator that is killed', async () => {
    const { coordinator, router, 'worker-a': worker } = await startCluster('coordinator');
    coordinator.process.kill('SIGKILL');
    for (const service of [router, worker]) {
      const [line] = await until(
        () => service.events('coordinator-lost'),
        ({ length }) => length > 0,
      );
      expect(line).toMatchObject({ level: 'warn' });
    }
  });

  test('tells why a role ends by itself, as stopping and stopped', async () => {
    const head = new Service('coordinator', { preset: 'tiny', workers: 1 });
    const coordinator = await head.address;
    for (const role of ['worker', 'router'] as const) {
      new Service(role, { coordinator, name: 'twin' });
      await until(
        () => head.events('node-joined'),
        (lines) => lines.some(({ node, nodeRole }) => node === 'twin' && nodeRole === role.toUpperCase()),
      );
      const second = new Service(role, { coordinator, name: 'twin' });
      expect(await second.process.exited).toEqual({ code: 1, signal: null });
      for (const event of ['stopping', 'stopped'])
        expect(second.events(event)).toEqual([
          expect.objectContaining({ level: 'info', reason: expect.stringContaining('name is "twin"') }),
        ]);
    }
  });
});
