import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Client, credentials } from '@grpc/grpc-js';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { commandLine } from '../../native/locate.js';
import type { RowsReader } from '../../services/client/index.js';
import { endMsMax } from '../../services/common/lifecycle.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { until } from '../support/until.js';

/** The preset `tiny`. */
const hidden = 256;
const drainMs = 1_000;
/** Nothing ends the batches and the links but the end of a process, however slow the machine is. */
const never = { clientStallMs: 600_000, leaseMs: 600_000 };
/** What routers hold of batches whose answers nobody takes: soon full, so that workers rest. */
const budgetBytes = 64 * 1024 * 1024;
/** What `forward` takes at most, as ARCHITECTURE.md says. */
const forwardMsMax = 3_000;
/** A client that has not reached all routers by then, each of which it gives 5 s, will not. */
const allRoutersMs = 30_000;
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

/** Watches the health of every process, until it ends. */
async function watchHealth({ processes }: TestCluster): Promise<void> {
  for (const { listening } of processes) {
    const caller = new Client((await listening).address, credentials.createInsecure());
    callers.push(caller);
    const call = caller.makeServerStreamRequest('/grpc.health.v1.Health/Watch', asIs, asIs, Buffer.alloc(0));
    call.on('error', () => {});
    await new Promise((resolve) => call.once('data', resolve));
    call.resume();
  }
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

const routerNames = ['coordinator', 'router-0'];

/**
 * A client that stands still in the middle of a batch that runs at both routers. It watches the cluster at that process. One that
 * did not reach both in time, as on a slow machine, is given up for another.
 */
async function freezeClient(cluster: TestCluster, name: string): Promise<ChildProcess> {
  const { address } = await cluster.process(name).listening;
  const before = await batches(cluster, routerNames);
  const program = commandLine();
  const batch = ['--sequences', '4', '--length', '1000000', '--no-feedback'];
  const child = spawn(process.execPath, [program, 'forward', '--address', address, ...batch], {
    stdio: 'ignore',
  });
  children.push(child);
  const startedMs = performance.now();
  const late = () => child.exitCode !== null || performance.now() - startedMs > allRoutersMs;
  const runs = (now: number[]) => now.map((count, index) => count > before[index]!);
  const found = await until(
    () => batches(cluster, routerNames).then(runs),
    (at) => at.every(Boolean) || late(),
  );
  if (found.every(Boolean)) {
    child.kill('SIGSTOP');
    return child;
  }
  child.kill('SIGKILL');
  await until(
    () => batches(cluster, routerNames).then(runs),
    (at) => !at.some(Boolean),
  );
  return freezeClient(cluster, name);
}

/** Of each of these routers. */
async function batches(cluster: TestCluster, names: readonly string[]): Promise<number[]> {
  const counts: number[] = [];
  for (const name of names) {
    const { metricsUrl } = await cluster.process(name).listening;
    // A connection that is kept could be closed by its server just as it is used.
    const response = await fetch(`${metricsUrl}/state`, { headers: { connection: 'close' } });
    const state = (await response.json()) as { batches?: number; router?: { batches: number } };
    counts.push(state.router?.batches ?? state.batches ?? 0);
  }
  return counts;
}

interface End {
  code: number | null;
  by: NodeJS.Signals | null;
  /** Its own words say that it has closed everything. */
  inOrder: boolean;
  ms: number;
}

/** Sends the signal to a process; resolves with how and when it ended. */
async function end(cluster: TestCluster, name: string, signal: NodeJS.Signals): Promise<End> {
  const started = performance.now();
  const { code, signal: by } = await cluster.kill(name, signal);
  const ms = performance.now() - started;
  return { code, by, inOrder: said(cluster, name, 'stopped'), ms };
}

const said = ({ lines }: TestCluster, name: string, event: string) =>
  lines.some((line) => line.startsWith(`${name} {`) && line.includes(`"event":"${event}"`));

/**
 * Ends everything of a cluster whose peers are as bad as can be: they watch, they do not read, they stand still. Whichever
 * is first meets the batches; each that follows has peers that are dead, and others that stand still.
 */
async function endTroubled(signal: NodeJS.Signals, names: readonly string[]): Promise<Map<string, End>> {
  const router = { drainMs, budgetBytes, ...never };
  const worker = { drainMs, leaseMs: never.leaseMs };
  const cluster = await startCluster({ workers: 1, routers: 1, coordinator: router, router, worker });
  await watchHealth(cluster);
  await pauseBatch(cluster);
  await freezeClient(cluster, 'router-0');
  const forward = await freezeClient(cluster, 'coordinator');
  for (const name of names) cluster.process(name).kill('SIGSTOP');

  const ends = new Map<string, End>();
  const started = performance.now();
  forward.kill(signal);
  forward.kill('SIGCONT');
  const [code, by] = (await once(forward, 'exit')) as [number | null, NodeJS.Signals | null];
  ends.set('forward', { code, by, inOrder: true, ms: performance.now() - started });
  for (const name of names) {
    cluster.process(name).kill('SIGCONT');
    ends.set(name, await end(cluster, name, signal));
  }
  return ends;
}

/** Ends a cluster whose processes have the drain that they have by default. */
async function endWatched(): Promise<Map<string, End>> {
  const cluster = await startCluster({
    workers: 1,
    routers: 2,
    coordinator: { budgetBytes, ...never },
    router: { budgetBytes, ...never },
  });
  await watchHealth(cluster);
  const ends = new Map([['idle router', await end(cluster, 'router-0', 'SIGTERM')]]);
  await pauseBatch(cluster);
  await until(
    () => batches(cluster, ['router-1']),
    ([count]) => count! > 0,
  );
  cluster.process('router-1').kill('SIGTERM');
  await until(() => said(cluster, 'router-1', 'stopping'));
  ends.set('router that is told twice', await end(cluster, 'router-1', 'SIGTERM'));
  ends.set('coordinator', await end(cluster, 'coordinator', 'SIGTERM'));
  ends.set('idle worker', await end(cluster, 'worker-0', 'SIGTERM'));
  return ends;
}

const names = ['router-0', 'worker-0', 'coordinator'];
const orders: [NodeJS.Signals, string[]][] = [
  ['SIGTERM', ['router-0', 'worker-0', 'coordinator']],
  ['SIGINT', ['worker-0', 'coordinator', 'router-0']],
  ['SIGHUP', ['coordinator', 'router-0', 'worker-0']],
];
const troubled = new Map<NodeJS.Signals, Map<string, End>>();
let watched: Map<string, End>;

/** All at once, since most of an end is waiting. */
beforeAll(async () => {
  await Promise.all([
    ...orders.map(async ([signal, order]) => troubled.set(signal, await endTroubled(signal, order))),
    endWatched().then((ends) => {
      watched = ends;
    }),
  ]);
});

const inOrder = { code: 0, by: null, inOrder: true };

describe.each(orders.map(([signal]) => signal))('at %s', (signal) => {
  test.each(names)('%s ends within its bound while its peers stand still', (name) => {
    const { ms, ...how } = troubled.get(signal)!.get(name)!;
    expect(how).toEqual(inOrder);
    expect(ms).toBeLessThan(endMsMax(drainMs) + slackMs);
  });

  test('forward ends within its bound while the cluster stands still', () => {
    const { ms, code, by } = troubled.get(signal)!.get('forward')!;
    expect({ code, by }).toEqual({ code: 1, by: null });
    expect(ms).toBeLessThan(forwardMsMax + slackMs);
  });
});

test.each(['idle router', 'idle worker'])('an %s that is watched does not wait', (name) => {
  const { ms, ...how } = watched.get(name)!;
  expect(how).toEqual(inOrder);
  // Less than a drain.
  expect(ms).toBeLessThan(6_000);
});

test('a coordinator whose batches do not end is gone before Docker would end it', () => {
  const { ms, ...how } = watched.get('coordinator')!;
  expect(how).toEqual(inOrder);
  expect(ms).toBeLessThan(dockerMs);
});

test('a second signal ends a process at once', () => {
  const { code, by } = watched.get('router that is told twice')!;
  expect({ code, by }).toEqual({ code: null, by: 'SIGTERM' });
});
