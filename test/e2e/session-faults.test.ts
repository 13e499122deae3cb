import { type ChildProcess, spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, describe, expect, test } from '@jest/globals';
import { builtFile, commandLine } from '../../native/locate.js';
import { type Session, type SessionBatchOptions, SwitchyardClient } from '../../services/client/index.js';
import type { TransportKind } from '../../services/transport/link.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

/** Links and clients alike, as Jest's configuration has it. */
declare const transport: TransportKind;

/** The preset `tiny`. */
const hidden = 256;
const rows = testRows(16, hidden);
const off: SessionBatchOptions = { feedback: false };
const clients: ChildProcess[] = [];

afterAll(() => {
  for (const client of clients) client.kill('SIGKILL');
});

interface Outcomes {
  /** Batches that came back, all with the same bits. */
  complete: number;
  codes: Set<string>;
  /** Names of routers that answered since the last look. */
  routers: Set<string>;
  stop(): Promise<void>;
}

/** Keeps `lanes` batches under way until it is stopped. */
async function keepSending(session: Session, lanes: number): Promise<Outcomes> {
  const { rows: expected } = await session.forward(rows, off);
  let over = false;
  const outcomes: Outcomes = {
    complete: 0,
    codes: new Set(),
    routers: new Set(),
    stop: async () => {
      over = true;
      await all;
    },
  };
  const lane = async () => {
    while (!over) {
      try {
        const result = await session.forward(rows, { ...off, deadlineMs: 20_000 });
        expect(Buffer.compare(result.rows, expected)).toBe(0);
        outcomes.complete += 1;
        outcomes.routers.add(result.summary.routers[0]!.name);
      } catch (error) {
        const { code } = error as { code?: string };
        if (code === undefined) throw error;
        outcomes.codes.add(code);
        await sleep(20);
      }
    }
  };
  const all = Promise.all(Array.from({ length: lanes }, lane)).then(() => {});
  all.catch(() => {});
  return outcomes;
}

async function until(check: () => unknown): Promise<void> {
  const end = performance.now() + 60_000;
  while (!(await check())) {
    if (performance.now() > end) throw new Error(`not within a minute: ${check}`);
    await sleep(20);
  }
}

async function routerState(cluster: TestCluster) {
  const response = await fetch(`${cluster.metricsUrl}/state`);
  const { router } = (await response.json()) as {
    router: { batches: number; sessions: number; budget: { used: number } };
  };
  return router;
}

describe('a session whose', () => {
  test('router is killed goes on with another; what was under way ends with ROUTER_LOST', async () => {
    const cluster = await startCluster({ routers: 1 });
    await cluster.client.waitUntilReady(60_000, 2);
    const session = cluster.client.session();
    const outcomes = await keepSending(session, 6);
    await until(() => outcomes.routers.size === 2);
    await cluster.kill('router-0');
    const { complete } = outcomes;
    outcomes.routers.clear();
    await until(() => outcomes.complete > complete + 100);
    await outcomes.stop();
    expect([...outcomes.routers]).toEqual(['coordinator']);
    expect([...outcomes.codes].every((code) => code === 'ROUTER_LOST' || code === 'NOT_READY')).toBe(true);
    await session.close();
    await cluster.stop();
  });

  test('cluster loses its worker waits for the next one; what has less time ends by its deadline, and names an expert', async () => {
    const cluster = await startCluster({ workers: 1 });
    const session = cluster.client.session();
    const outcomes = await keepSending(session, 6);
    await until(() => outcomes.complete > 20);
    await cluster.kill('worker-0');
    await until(async () => (await routerState(cluster)).batches > 0);
    const late = session.forward(rows, { ...off, deadlineMs: 500 });
    await expect(late).rejects.toMatchObject({
      code: 'DEADLINE_EXCEEDED',
      message: expect.stringMatching(/layer \d,? expert \d/),
    });
    const flags = [
      '--coordinator',
      cluster.address,
      '--name',
      'worker-0',
      '--port',
      '0',
      '--metrics-port',
      '0',
    ];
    const program = commandLine();
    clients.push(
      spawn(process.execPath, [program, 'worker', ...flags, '--threads', '1'], { stdio: 'ignore' }),
    );
    const { complete } = outcomes;
    await until(() => outcomes.complete > complete + 50);
    await outcomes.stop();
    expect([...outcomes.codes].every((code) => code === 'DEADLINE_EXCEEDED')).toBe(true);
    await session.close();
    await cluster.stop();
  });
});

/** A program that keeps 8 batches of a session under way, and says when the first is back. */
const busyProgram = `
  const { SwitchyardClient } = await import(process.argv[1]);
  const client = await SwitchyardClient.connect(process.argv[2], { transport: process.argv[3] });
  const session = client.session();
  const rows = new Uint8Array(64 * 1024);
  await session.forward(rows);
  console.log('back');
  await Promise.all(Array.from({ length: 8 }, async () => { for (;;) await session.forward(rows); }));
`;

test('clients of sessions that are stopped or killed hold nothing of the router once clientStallMs is over, and others go on', async () => {
  const cluster = await startCluster({
    coordinator: { clientStallMs: 1_500, transport },
    worker: { transport },
  });
  const session = cluster.client.session();
  const module = builtFile('services', 'client', 'index.js');
  const busy = [0, 1].map(() => {
    const args = ['--input-type=module', '-e', busyProgram, module, cluster.address, transport];
    return spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  });
  clients.push(...busy);
  await Promise.all(
    busy.map(
      (client) =>
        new Promise<void>((resolve, reject) => {
          client.stdout!.once('data', () => resolve());
          client.once('exit', (code) => reject(new Error(`a client has ended with ${code}`)));
        }),
    ),
  );
  const outcomes = await keepSending(session, 2);
  await until(async () => (await routerState(cluster)).sessions === 3);
  busy[0]!.kill('SIGSTOP');
  busy[1]!.kill('SIGKILL');
  // A client that is stopped while none of its answers is on its way to it owes nothing.
  await until(async () => (await routerState(cluster)).sessions <= 2);
  const { complete } = outcomes;
  await until(() => outcomes.complete > complete + 100);
  await outcomes.stop();
  expect([...outcomes.codes]).toEqual([]);
  await until(async () => {
    const { batches, budget } = await routerState(cluster);
    return batches === 0 && budget.used === 0;
  });
  await session.close();
  await cluster.stop();
});

test('the only router there is gets more time to open a session than one of several', async () => {
  const cluster = await startCluster({ coordinator: { transport }, worker: { transport } });
  const client = await SwitchyardClient.connect(cluster.address, { timeoutMs: 60_000 });
  // Once its connection stands, that of the session is what waits.
  await (await client.forward(testRows(2_000, hidden), { feedback: false })).collect();
  const router = cluster.process('coordinator');
  router.kill('SIGSTOP');
  const session = client.session();
  const answered = session.forward(rows, off);
  // Longer than another one would be waited for.
  await sleep(7_000);
  router.kill('SIGCONT');
  expect((await answered).rows).toHaveLength(rows.byteLength);
  await session.close();
  await client.close();
  await cluster.stop();
});

/** A program with a session that has done its work. */
const idleProgram = `
  const { SwitchyardClient } = await import(process.argv[1]);
  const client = await SwitchyardClient.connect(process.argv[2], { transport: process.argv[3] });
  const session = client.session();
  const { summary } = await session.forward(new Uint8Array(512));
  console.log(summary.routers[0].transport);
`;

test('an idle session keeps no process alive', async () => {
  const cluster = await startCluster({});
  const module = builtFile('services', 'client', 'index.js');
  const args = ['--input-type=module', '-e', idleProgram, module, cluster.address, transport];
  const client = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  clients.push(client);
  let said = '';
  client.stdout!.on('data', (text) => {
    said += text;
  });
  const code = await new Promise((resolve) => client.once('exit', resolve));
  expect([code, said.trim()]).toEqual([0, transport]);
  await until(async () => (await routerState(cluster)).sessions === 0);
  await cluster.stop();
});
