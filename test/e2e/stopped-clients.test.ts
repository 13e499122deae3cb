import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, jest, test } from '@jest/globals';
import { commandLine } from '../../native/locate.js';
import { Deferred } from '../../services/common/lifecycle.js';
import type { TransportKind } from '../../services/transport/link.js';
import { startCluster, type TestCluster } from '../support/cluster.js';

jest.setTimeout(300_000);

/** Links and clients alike, as Jest's configuration has it. */
declare const transport: TransportKind;

/** A machine with much else to do holds clients up for a while, too. */
const clientStallMs = 4_000;
const rowBytes = 256 * 2;
const clients: ChildProcess[] = [];
let cluster: TestCluster;

beforeAll(async () => {
  // Workers that are stopped for a while are not lost.
  const coordinator = { clientStallMs, transport, leaseMs: 60_000 };
  cluster = await startCluster({ coordinator, worker: { transport, leaseMs: 60_000 } });
});

afterAll(() => {
  for (const client of clients) client.kill('SIGKILL');
});

interface State {
  batches: number;
  budget: { used: number };
  slabs: { bytesInUse: number };
}

async function state(): Promise<State> {
  const response = await fetch(`${cluster.metricsUrl}/state`, { headers: { connection: 'close' } });
  return ((await response.json()) as { router: State }).router;
}

/** The fewest of a second: connections of requests to it come and go. */
async function descriptors(): Promise<number> {
  let fewest = Number.POSITIVE_INFINITY;
  for (let look = 0; look < 20; look += 1, await sleep(50))
    fewest = Math.min(fewest, readdirSync(`/proc/${cluster.process('coordinator').pid}/fd`).length);
  return fewest;
}

async function until(what: string, check: (state: State) => boolean): Promise<State> {
  const end = performance.now() + 100_000;
  for (;;) {
    const seen = await state();
    if (check(seen)) return seen;
    if (performance.now() > end) throw new Error(`not ${what}: ${JSON.stringify(seen)}`);
    await sleep(20);
  }
}

test('a client may be idle for longer than clientStallMs while the router is busy with its rows', async () => {
  const workers = cluster.processes.filter(({ role }) => role === 'worker');
  for (const worker of workers) worker.kill('SIGSTOP');
  const rest = new Deferred<void>();
  const call = await cluster.client.forward(
    {
      tokens: 200,
      hidden: 256,
      read: async (offset, count) => {
        if (offset >= 100) await rest.promise;
        return new Uint8Array(count * rowBytes);
      },
    },
    { transport, feedback: false, chunkTokens: 100 },
  );
  const outcome = call.collect();
  outcome.catch(() => {});
  try {
    await until('busy', ({ budget }) => budget.used > 0);
    await sleep(1.5 * clientStallMs);
    rest.resolve();
  } finally {
    for (const worker of workers) worker.kill('SIGCONT');
  }
  expect((await outcome).summary.tokens).toBe(200);
});

test('clients that are stopped in the middle of their batches hold nothing of the router once clientStallMs is over', async () => {
  const warm = await cluster.client.forward(new Uint8Array(4096 * rowBytes), { feedback: false });
  await warm.collect();
  const before = {
    ...(await until('idle', ({ batches }) => batches === 0)),
    descriptors: await descriptors(),
  };

  const program = commandLine();
  const batch = ['--length', '8000000', '--no-feedback', '--transport', transport];
  for (let index = 0; index < 3; index += 1) {
    const args = [program, 'forward', '--address', cluster.address, '--sequences', '1', ...batch];
    clients.push(spawn(process.execPath, args, { stdio: 'ignore' }));
  }
  await until('under way', ({ batches, budget }) => batches === clients.length && budget.used > 0);
  await sleep(500);
  for (const client of clients) client.kill('SIGSTOP');
  const held = await state();
  expect(held.slabs.bytesInUse).toBeGreaterThan(before.slabs.bytesInUse);

  // They are still stopped.
  const back = before.slabs.bytesInUse + 1024 * 1024;
  await until('given back', ({ batches, budget, slabs }) => {
    return batches === 0 && budget.used === 0 && slabs.bytesInUse <= back;
  });
  // What is left until they have been silent for long enough: connections and, over UCX, the file of their slabs.
  expect(await descriptors()).toBeLessThanOrEqual(before.descriptors + 3 * clients.length);
  const call = await cluster.client.forward(new Uint8Array(100 * rowBytes), { feedback: false });
  expect((await call.collect()).summary.tokens).toBe(100);
});
