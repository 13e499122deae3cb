import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, jest, test } from '@jest/globals';
import { packageRoot } from '../../native/locate.js';
import type { TransportKind } from '../../services/transport/link.js';
import { startCluster } from '../support/cluster.js';

jest.setTimeout(180_000);

/** Links and clients alike, as Jest's configuration has it. */
declare const transport: TransportKind;

const clients: ChildProcess[] = [];

afterAll(() => {
  for (const client of clients) client.kill('SIGKILL');
});

interface State {
  batches: number;
  budget: { used: number };
  slabs: { bytesInUse: number };
}

test('clients that are stopped in the middle of their batches hold nothing of the router once clientStallMs is over', async () => {
  const clientStallMs = 1_500;
  const cluster = await startCluster({ coordinator: { clientStallMs, transport }, worker: { transport } });
  const state = async (): Promise<State> => {
    const response = await fetch(`${cluster.metricsUrl}/state`);
    return ((await response.json()) as { router: State }).router;
  };
  const until = async (what: string, check: (state: State) => boolean) => {
    const end = performance.now() + 30_000;
    for (;;) {
      const seen = await state();
      if (check(seen)) return seen;
      if (performance.now() > end) throw new Error(`not ${what}: ${JSON.stringify(seen)}`);
      await sleep(20);
    }
  };
  const descriptors = () => readdirSync(`/proc/${cluster.process('coordinator').pid}/fd`).length;
  const warm = await cluster.client.forward(new Uint8Array(4096 * 256 * 2), { feedback: false });
  await warm.collect();
  const before = { ...(await until('idle', ({ batches }) => batches === 0)), descriptors: descriptors() };

  const program = join(packageRoot(), 'dist', 'services', 'cli', 'main.js');
  const batch = ['--length', '8000000', '--no-feedback', '--transport', transport];
  for (let index = 0; index < 6; index += 1) {
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
  // What is left is one connection each, until it has been silent for long enough.
  expect(descriptors()).toBeLessThanOrEqual(before.descriptors + 2 * clients.length);
  const call = await cluster.client.forward(new Uint8Array(100 * 256 * 2), { feedback: false });
  expect((await call.collect()).summary.tokens).toBe(100);
});
