import { spawn } from 'node:child_process';
import { describe, expect, test } from '@jest/globals';
import { commandLine } from '../../native/locate.js';
import type { ProcessRole } from '../../services/cli/local-process.js';
import { switchyard } from '../support/cli.js';
import { testRows } from '../support/rows.js';
import { atEnd, connect, Service, works } from '../support/services.js';
import { until } from '../support/until.js';

/** No resolver knows names of this domain (RFC 2606). */
const unresolvable = 'node-a.invalid';
const hidden = 256;

describe('a node that advertises a name which does not resolve', () => {
  test('serves the clients that reached it by another address, if it is a router', async () => {
    const flags = { preset: 'tiny', workers: 1, advertiseHost: unresolvable };
    const address = await new Service('coordinator', flags).address;
    new Service('worker', { coordinator: address });
    const client = await connect(address);
    await client.waitUntilReady(60_000);
    const { view } = await client.describeCluster();
    expect(view?.nodes.find(({ role }) => role === 'ROUTER')?.address).toMatch(/^node-a\.invalid:\d+$/);
    const call = await client.forward(testRows(8, hidden), { sequences: 2 });
    expect((await call.collect()).summary).toMatchObject({ tokens: 8 });
  });

  test('fails the clients that asked another node, with its address and the option to set', async () => {
    const address = await new Service('coordinator', { preset: 'tiny', workers: 1, router: false }).address;
    new Service('worker', { coordinator: address });
    new Service('router', { coordinator: address, advertiseHost: unresolvable });
    await (await connect(address)).waitUntilReady(60_000);
    const { status, stderr } = await switchyard(['forward', '--address', address, '--length', '8']);
    expect(stderr).toMatch(
      /^switchyard: NOT_READY: no router can be reached: nothing answers at node-a\.invalid:\d+: the name in node-a\.invalid:\d+ does not resolve on this machine; router router-\S+ advertises this address: .* another --advertise-host\n$/,
    );
    expect(status).toBe(1);
  });

  test('keeps routers from being ready, with its address and the option to set, if it is a worker', async () => {
    const head = new Service('coordinator', { preset: 'tiny', workers: 1 });
    const coordinator = await head.address;
    new Service('worker', { coordinator, name: 'worker-a', advertiseHost: unresolvable });
    const { reason } = await until(
      () => head.readiness(),
      (now) => now.reason.includes('resolve'),
    );
    expect(reason).toMatch(
      /no link to worker worker-a: the name in node-a\.invalid:\d+ does not resolve on this machine; start worker worker-a with --advertise-host/,
    );
  });
});

test('an address of the coordinator that does not resolve is named by those that join', async () => {
  const coordinator = `${unresolvable}:7070`;
  for (const role of ['router', 'worker'] as const) {
    const node = new Service(role, { coordinator });
    const [said] = await until(
      () => node.events('coordinator-unreachable'),
      ({ length }) => length > 0,
    );
    expect(said).toMatchObject({ reason: `the name in ${coordinator} does not resolve on this machine` });
  }
  const { status, stderr } = await switchyard(['status', '--address', coordinator]);
  expect(stderr).toBe(
    `switchyard: NOT_READY: nothing answers at ${coordinator}: the name in ${coordinator} does not resolve on this machine\n`,
  );
  expect(status).toBe(1);
});

const namespaces = works('default names', 'unshare', '-fp', '--mount-proc', 'true');

(namespaces ? test : test.skip)(
  'workers and routers without names join one cluster, though each has the process id 1',
  async () => {
    const address = await new Service('coordinator', { preset: 'tiny', workers: 2, router: false }).address;
    const program = commandLine();
    const isolated = (role: ProcessRole) => {
      const flags = ['--coordinator', address, '--threads', '1'];
      const command = ['-fp', '--mount-proc', '--kill-child', process.execPath, program, role, ...flags];
      const child = spawn('unshare', command, { stdio: 'ignore' });
      const exited = new Promise((resolve) => child.once('close', resolve));
      atEnd(() => {
        child.kill('SIGKILL');
        return exited;
      });
    };
    for (const role of ['worker', 'worker', 'router', 'router'] as const) isolated(role);
    const client = await connect(address);
    await client.waitUntilReady(60_000, 2);
    const { view } = await client.describeCluster();
    const live = view!.nodes.filter(({ state }) => state === 'READY');
    expect(live.map(({ role, pid }) => [role, pid]).sort()).toEqual([
      ['ROUTER', 1],
      ['ROUTER', 1],
      ['WORKER', 1],
      ['WORKER', 1],
    ]);
  },
);
