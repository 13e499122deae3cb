import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { afterEach, describe, expect, test } from '@jest/globals';
import { SwitchyardClient } from '../../services/client/index.js';
import { Watchers } from '../../services/common/watchers.js';
import { rowBytes, startCluster, stateOf, tokens } from '../router/cluster.js';
import { until } from '../support/until.js';
import { serveWatch } from '../support/watch-server.js';

const clients: SwitchyardClient[] = [];

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const client of clients.splice(0)) client.destroy();
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

async function connected(addresses: string | string[]): Promise<SwitchyardClient> {
  const client = await SwitchyardClient.connect(addresses, { transport: 'grpc' });
  clients.push(client);
  return client;
}

/** The routers that a batch of 4 sequences went through. */
async function routersOf(client: SwitchyardClient): Promise<string[]> {
  const call = await client.forward(await tokens(8), { sequences: 4, feedback: false });
  return (await call.summary).routers.map(({ name }) => name).sort();
}

/** Nothing listens there: the port is privileged, and no test runs as a server of it. */
const nobody = '127.0.0.1:1';

describe('a client that connects', () => {
  test('takes the first of its addresses that answers', async () => {
    const { routers } = await startCluster();
    const client = await connected([nobody, routers[0]!.address]);
    await client.waitUntilReady(30_000);
    expect(await routersOf(client)).toEqual(['router-0']);
    expect((await client.describeModel()).hidden * 2).toBe(rowBytes);
  });

  test('names all of them if none does', async () => {
    const other = 'no-such-host.invalid:7070';
    await expect(SwitchyardClient.connect([nobody, other])).rejects.toMatchObject({
      code: 'NOT_READY',
      message: expect.stringMatching(
        /^nothing answers at 127\.0\.0\.1:1: .*ECONNREFUSED.*; nothing answers at no-such-host\.invalid:7070: the name in .* does not resolve/,
      ),
    });
    await expect(SwitchyardClient.connect(nobody)).rejects.toMatchObject({
      code: 'NOT_READY',
      message: expect.stringMatching(/^nothing answers at 127\.0\.0\.1:1: .*ECONNREFUSED/),
      details: { address: nobody },
    });
  });

  test('refuses what is no address, and none', async () => {
    for (const wrong of [['http://127.0.0.1:7070'], '127.0.0.1', [nobody, '127.0.0.1:99999'], []]) {
      await expect(SwitchyardClient.connect(wrong)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
  });

  test('to a coordinator whose cluster is still loading may wait for it', async () => {
    const { coordinator } = await startCluster({ workers: 0, routers: 0, coordinator: { workers: 1 } });
    const client = await connected(coordinator.address);
    await expect(client.waitUntilReady(50)).rejects.toMatchObject({
      code: 'NOT_READY',
      message: expect.stringContaining('0 of the 1 expected workers have joined'),
    });
    await expect(client.forward(await tokens(1))).rejects.toMatchObject({
      code: 'NOT_READY',
      message: expect.stringContaining('no router takes batches'),
    });
  });
});

describe('a client of a coordinator', () => {
  test('that is gone goes on with the routers that it knows, and with those that are left of them', async () => {
    const { coordinator, routers } = await startCluster({ routers: 3 });
    const client = await connected(coordinator.address);
    await client.waitUntilReady(30_000, 3);
    expect(await routersOf(client)).toEqual(['router-0', 'router-1', 'router-2']);
    await coordinator.stop('it is to be gone');
    for (let turn = 0; turn < 5; turn += 1)
      expect(await routersOf(client)).toEqual(['router-0', 'router-1', 'router-2']);
    await routers[1]!.stop('it is to be gone');
    for (let turn = 0; turn < 5; turn += 1) expect(await routersOf(client)).toEqual(['router-0', 'router-2']);
    expect((await client.describeCluster()).model?.hidden).toBe(rowBytes / 2);
    await routers[0]!.stop('it is to be gone');
    await routers[2]!.stop('it is to be gone');
    await expect(routersOf(client)).rejects.toMatchObject({ code: 'NOT_READY' });
  });

  test('hears of routers that come, and of one that leaves before it has left', async () => {
    const { coordinator, routers } = await startCluster({ routers: 2, router: { drainMs: 60_000 } });
    const client = await connected(coordinator.address);
    await client.waitUntilReady(30_000, 2);
    // A batch that does not end keeps the router that leaves from its end.
    const held = new AbortController();
    const one = await SwitchyardClient.connect(routers[0]!.address, { transport: 'grpc' });
    clients.push(one);
    async function* endless() {
      yield await tokens(4);
      await new Promise(() => {});
    }
    const calls = [0, 1].map(() =>
      one.forward(endless(), { sequences: 1, length: 8, routers: 1, signal: held.signal }),
    );
    const ends = (await Promise.all(calls)).map((call) => call.summary.catch(() => {}));
    await until(
      () => stateOf(routers[0]!),
      ({ batches }) => batches === 1,
    );
    const stopped = routers[0]!.stop('the test wants it');
    const outcome = () => routersOf(client).catch((error) => error.code);
    await until(outcome, (names) => JSON.stringify(names) === '["router-1"]');
    for (let turn = 0; turn < 5; turn += 1) expect(await routersOf(client)).toEqual(['router-1']);
    held.abort();
    await Promise.all(ends);
    await stopped;
  });

  test('names the node and --advertise-host where it advertises what nobody resolves', async () => {
    const { coordinator } = await startCluster({ router: { advertiseHost: 'no-such-host.invalid' } });
    const client = await connected(coordinator.address);
    await client.waitUntilReady(30_000);
    await expect(client.forward(await tokens(1))).rejects.toMatchObject({
      code: 'NOT_READY',
      message: expect.stringMatching(
        /^no router can be reached: nothing answers at no-such-host\.invalid:\d+: .*; router router-0 advertises .*--advertise-host$/,
      ),
      details: { router: 'router-0', address: expect.stringContaining('no-such-host.invalid') },
    });
  });

  test('names each of several that cannot be reached, of many the first', async () => {
    const node = { host: '', state: 'READY', messageBytesMax: 1024 * 1024 } as const;
    const routers = Array.from({ length: 10 }, (_, at) => ({
      ...node,
      name: `r${at}`,
      address: `127.0.0.1:${at + 1}`,
    }));
    const watchers = new Watchers(() => ({ routers, model: { hidden: rowBytes / 2 }, ready: true }));
    const server = await serveWatch(watchers);
    cleanups.push(() => server.close(0));
    const client = await connected(server.address);
    const error = await client.forward(await tokens(1)).catch((thrown) => thrown);
    expect(error.code).toBe('NOT_READY');
    expect(error.message).toMatch(
      /^no router can be reached: (nothing answers at 127\.0\.0\.1:\d+: [^;]+; ){8}/,
    );
    expect(error.message).toMatch(/; and 2 more; routers advertise these addresses: .* --advertise-host$/);
  });
});

describe('a router that takes connections and says nothing', () => {
  /** A client of a server that tells of such a router, and of `others`. */
  async function withSilentRouter(others: string[], timeoutMs: number): Promise<SwitchyardClient> {
    const silent = createServer((socket) => socket.on('error', () => {})).listen(0, '127.0.0.1');
    await once(silent, 'listening');
    const address = `127.0.0.1:${(silent.address() as AddressInfo).port}`;
    const node = { host: '', state: 'READY', messageBytesMax: 1024 * 1024 } as const;
    const router = (name: string, address: string) => ({ ...node, name, address });
    const routers = [address, ...others].map((at, index) => router(`router-${index}`, at));
    const watchers = new Watchers(() => ({ routers, model: { hidden: rowBytes / 2 }, ready: true }));
    const server = await serveWatch(watchers);
    const client = await SwitchyardClient.connect(server.address, { timeoutMs, transport: 'grpc' });
    clients.push(client);
    cleanups.push(
      () => server.close(0),
      () => silent.close(),
    );
    return client;
  }

  test('is waited for up to the deadline of a batch, its signal, or the end of the client', async () => {
    const client = await withSilentRouter([], 600_000);
    const rows = await tokens(1);
    await expect(client.forward(rows, { deadlineMs: 100 })).rejects.toMatchObject({
      code: 'DEADLINE_EXCEEDED',
      message: 'the deadline of 100 ms has passed before a router was reached',
    });
    const controller = new AbortController();
    const aborted = client.forward(rows, { signal: controller.signal });
    setImmediate(() => controller.abort());
    await expect(aborted).rejects.toMatchObject({ code: 'CANCELLED' });
    const destroyed = client.forward(rows);
    setImmediate(() => client.destroy());
    await expect(destroyed).rejects.toMatchObject({ code: 'CANCELLED', message: 'the client was destroyed' });
  });

  test('is left out when another one can be reached', async () => {
    const { routers } = await startCluster();
    const client = await withSilentRouter([routers[0]!.address], 2_000);
    for (let turn = 0; turn < 3; turn += 1) expect(await routersOf(client)).toEqual(['router-0']);
  });
});
