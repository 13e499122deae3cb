import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { beforeAll, describe, expect, test } from '@jest/globals';
import { fixedPort } from '../../bench/fixed-port.js';
import { builtFile } from '../../native/locate.js';
import type { RowsReader, SwitchyardClient } from '../../services/client/index.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';
import { connect, Service } from '../support/services.js';
import { until } from '../support/until.js';

async function kill(...services: Service[]): Promise<void> {
  for (const { process } of services) process.kill('SIGKILL');
  await Promise.all(services.map(({ process }) => process.exited));
}

function rowsOf(hidden: number): RowsReader {
  const rows = testRows(64, hidden);
  return {
    tokens: 64,
    hidden,
    read: (first, count) => rows.subarray(first * hidden * 2, (first + count) * hidden * 2),
  };
}

async function submit(client: SwitchyardClient, hidden = 256): Promise<string[]> {
  const { summary } = await (
    await client.forward(rowsOf(hidden), { sequences: 8, feedback: false })
  ).collect();
  return summary.routers.map(({ name }) => name).sort();
}

test('a client outlives its coordinator, a router, and the model', async () => {
  const head = { preset: 'tiny', workers: 1, router: false, port: await fixedPort() };
  let coordinator = new Service('coordinator', head);
  const address = await coordinator.address;
  const join = { coordinator: address };
  const node = (role: 'worker' | 'router', name: string) => new Service(role, { ...join, name });
  const nodes = ['router-0', 'router-1'].map((name) => node('router', name));
  nodes.push(node('worker', 'worker-0'));
  const client = await connect(address);
  await client.waitUntilReady(60_000, 2);
  // The routers, too, must have heard of each other before it dies.
  for (const router of nodes.slice(0, 2))
    await (await connect(await router.address)).waitUntilReady(60_000, 2);

  await kill(coordinator);
  for (let batch = 0; batch < 20; batch += 1) expect(await submit(client)).toEqual(['router-0', 'router-1']);

  await kill(nodes[0]!);
  // A turn of the event loop, in which the connection is seen to be gone.
  await new Promise(setImmediate);
  for (let batch = 0; batch < 5; batch += 1) expect(await submit(client)).toEqual(['router-1']);

  coordinator = new Service('coordinator', head);
  nodes.push(node('router', 'router-2'));
  // Batches that meet the coordinator while its worker joins again may fail; the client hears of the new router all the same.
  await until(
    () => submit(client).catch(() => []),
    (routers) => routers.join() === 'router-1,router-2',
  );

  await kill(coordinator, ...nodes);
  await expect(submit(client)).rejects.toMatchObject({ code: 'NOT_READY' });
  new Service('coordinator', { ...head, hidden: 512 });
  node('worker', 'worker-0');
  node('router', 'router-0');
  // Another client's word for it: this one has not been told to look.
  const other = await until(
    () => connect(address).catch(() => null),
    (connected) => connected !== null,
  );
  await other!.waitUntilReady(60_000);
  expect(await submit(client, 512)).toEqual(['router-0']);
  await expect(submit(client, 256)).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: "input.hidden is 256; allowed: 512, the model's",
  });
});

describe('a program that uses the SDK ends by itself', () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await startCluster({ workers: 1 });
  });

  const begin = 'const batch = await client.forward(rows, { feedback: false });';
  test.each([
    [
      'when its client was closed',
      `${begin} const closed = client.close(); await batch.summary; await closed;`,
    ],
    ['when its client was destroyed in the middle of a batch', `${begin} client.destroy();`],
    ['when its batches have ended and it forgot to close its client', `${begin} await batch.collect();`],
    ['when it did nothing with its client', ''],
  ])('%s', async (_, body) => {
    const sdk = builtFile('services', 'client', 'index.js');
    const script = `
      import { SwitchyardClient } from '${sdk}';
      const transport = '${process.env.SWITCHYARD_TRANSPORT}';
      const client = await SwitchyardClient.connect('${cluster.address}', { transport });
      const rows = new Uint8Array(${64 * 256 * 2});
      ${body}
      console.log('done');
    `;
    const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let said = '';
    child.stdout.on('data', (data) => {
      said += data;
    });
    expect(await once(child, 'close')).toEqual([0, null]);
    expect(said).toBe('done\n');
  });
});
