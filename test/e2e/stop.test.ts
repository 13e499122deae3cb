import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client, credentials } from '@grpc/grpc-js';
import { afterAll, beforeAll, describe, expect, jest, test } from '@jest/globals';
import { packageRoot } from '../../native/locate.js';
import type { RowsReader } from '../../services/client/index.js';
import { endMsMax } from '../../services/common/lifecycle.js';
import { startCluster, type TestCluster } from '../support/cluster.js';

jest.setTimeout(180_000);

/** The preset `tiny`. */
const hidden = 256;
const drainMs = 1_000;
/** What a loaded machine may add; without a bound an end took a minute and more. */
const slackMs = 5_000;
/** After which Docker ends a container for good. */
const dockerMs = 10_000;

const callers: Client[] = [];
const children: ChildProcess[] = [];

afterAll(() => {
  for (const caller of callers) caller.close();
  for (const child of children) child.kill('SIGKILL');
});

const asIs = (bytes: Buffer) => bytes;

/** Watches the health of a server, until it ends. */
async function watchHealth(address: string): Promise<void> {
  const caller = new Client(address, credentials.createInsecure());
  callers.push(caller);
  const call = caller.makeServerStreamRequest('/grpc.health.v1.Health/Watch', asIs, asIs, Buffer.alloc(0));
  call.on('error', () => {});
  await new Promise((resolve) => call.once('data', resolve));
  call.resume();
}

/** A batch that has begun at every router and whose answers nobody takes. */
async function pauseBatch(cluster: TestCluster): Promise<void> {
  const block = Buffer.alloc(1 << 22);
  const input: RowsReader = {
    tokens: 4_000_000,
    hidden,
    sequences: 4,
    read: (_, count) => block.subarray(0, count * hidden * 2),
  };
  const call = await cluster.client.forward(input, { sequences: 4, feedback: false });
  const chunks = call[Symbol.asyncIterator]();
  expect((await chunks.next()).done).toBe(false);
}

/** A client that is stopped in the middle of a batch. */
async function freezeClient(cluster: TestCluster): Promise<void> {
  const program = join(packageRoot(), 'dist', 'services', 'cli', 'main.js');
  const batch = ['--sequences', '4', '--length', '1000000', '--no-feedback'];
  const client = spawn(process.execPath, [program, 'forward', '--address', cluster.address, ...batch], {
    stdio: 'ignore',
  });
  children.push(client);
  const batches = async () => {
    const response = await fetch(`${cluster.metricsUrl}/state`);
    return ((await response.json()) as { router: { batches: number } }).router.batches;
  };
  while ((await batches()) < 2) await sleep(20);
  client.kill('SIGSTOP');
}

/** A cluster whose peers are as bad as can be: they watch, they do not read, they stand still. */
async function startTroubled(): Promise<TestCluster> {
  const own = { drainMs };
  const cluster = await startCluster({ routers: 1, coordinator: own, router: own, worker: own });
  const addresses = await Promise.all(
    cluster.processes.map(async ({ listening }) => (await listening).address),
  );
  await Promise.all(addresses.map(watchHealth));
  await pauseBatch(cluster);
  await freezeClient(cluster);
  return cluster;
}

/** Sends the signal to a process; resolves with how and when it ended. */
async function end(cluster: TestCluster, name: string, signal: NodeJS.Signals) {
  const started = performance.now();
  const exit = await cluster.kill(name, signal);
  return { ...exit, ms: performance.now() - started };
}

/** Its own words say that it has closed everything. */
function stoppedInOrder(cluster: TestCluster, name: string): boolean {
  return cluster.lines.some((line) => line.startsWith(`${name} {`) && line.includes('"event":"stopped"'));
}

/** Whichever is first meets the batches; each that follows has peers that are dead, and others that stand still. */
const orders: [NodeJS.Signals, string[]][] = [
  ['SIGTERM', ['router-0', 'worker-0', 'coordinator', 'worker-1']],
  ['SIGINT', ['worker-0', 'coordinator', 'router-0', 'worker-1']],
  ['SIGHUP', ['coordinator', 'worker-0', 'router-0', 'worker-1']],
];

describe.each(orders)('at %s', (signal, names) => {
  let cluster: TestCluster;

  beforeAll(async () => {
    cluster = await startTroubled();
    for (const name of names) cluster.process(name).kill('SIGSTOP');
  });

  test.each(names)('%s ends within its bound while its peers stand still', async (name) => {
    cluster.process(name).kill('SIGCONT');
    const { code, signal: by, ms } = await end(cluster, name, signal);
    expect({ code, by }).toEqual({ code: 0, by: null });
    expect(stoppedInOrder(cluster, name)).toBe(true);
    expect(ms).toBeLessThan(endMsMax(drainMs) + slackMs);
  });
});

describe('with its own drain', () => {
  let cluster: TestCluster;

  beforeAll(async () => {
    cluster = await startCluster({ routers: 1 });
    const addresses = await Promise.all(
      cluster.processes.map(async ({ listening }) => (await listening).address),
    );
    await Promise.all(addresses.map(watchHealth));
  });

  test.each(['worker-0', 'router-0'])('an idle %s that is watched does not wait', async (name) => {
    const { code, ms } = await end(cluster, name, 'SIGTERM');
    expect(code).toBe(0);
    expect(stoppedInOrder(cluster, name)).toBe(true);
    expect(ms).toBeLessThan(4_000);
  });

  test('a coordinator whose batches do not end is gone before Docker would end it', async () => {
    const own = await startCluster();
    await pauseBatch(own);
    const { code, ms } = await end(own, 'coordinator', 'SIGTERM');
    expect(code).toBe(0);
    expect(stoppedInOrder(own, 'coordinator')).toBe(true);
    expect(ms).toBeLessThan(dockerMs);
  });

  test('a second signal ends a process at once', async () => {
    const own = await startCluster();
    await pauseBatch(own);
    const coordinator = own.process('coordinator');
    coordinator.kill('SIGTERM');
    while (!own.lines.some((line) => /^coordinator .*"event":"stopping"/.test(line))) await sleep(10);
    expect(await own.kill('coordinator', 'SIGTERM')).toEqual({ code: null, signal: 'SIGTERM' });
  });
});
