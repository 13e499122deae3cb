import { type ChildProcess, spawn } from 'node:child_process';
import { cp, mkdtemp, readFile, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { commandLine, packageRoot } from '../../native/locate.js';
import type { RowsReader } from '../../services/client/index.js';
import type { TransportKind } from '../../services/transport/link.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';

/** The preset `tiny`. */
const hidden = 256;
const transports: readonly TransportKind[] = native.ucx === null ? ['grpc'] : ['grpc', 'ucx'];
const longTokens = 8_000_000;

let directory: string;
let cluster: TestCluster;
const clients: ChildProcess[] = [];

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-'));
  cluster = await startCluster({ workers: 2, coordinator: { clientStallMs: 2_000 } });
});

afterAll(async () => {
  for (const client of clients) client.kill('SIGKILL');
  await rm(directory, { recursive: true });
});

interface State {
  batches: number;
  budget: { used: number };
}

const state = async (): Promise<State> => {
  const response = await fetch(`${cluster.metricsUrl}/state`);
  return ((await response.json()) as { router: State }).router;
};

/** Waits until the coordinator's router holds nothing for anybody. */
async function untilIdle(): Promise<void> {
  for (;;) {
    const { batches, budget } = await state();
    if (batches === 0 && budget.used === 0) return;
    await sleep(20);
  }
}

/** What a program says that uses the SDK. */
async function outputOf(script: string, environment: Readonly<Record<string, string>> = {}): Promise<string> {
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
    env: { ...process.env, ...environment },
  });
  let stdout = '';
  child.stdout.on('data', (data) => {
    stdout += data;
  });
  expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0);
  return stdout;
}

/** A client process with a batch that is under way at the coordinator's router. */
async function clientUnderWay(transport: TransportKind): Promise<ChildProcess> {
  const program = commandLine();
  const batch = ['--sequences', '1', '--length', `${longTokens}`, '--no-feedback', '--transport', transport];
  const client = spawn(process.execPath, [program, 'forward', '--address', cluster.address, ...batch], {
    stdio: 'ignore',
  });
  clients.push(client);
  while ((await state()).budget.used === 0) await sleep(20);
  await sleep(200);
  return client;
}

async function expectServing(): Promise<void> {
  const rows = new Uint8Array(2 * 100 * hidden * 2);
  const call = await cluster.client.forward(rows, { sequences: 2, feedback: false });
  expect((await call.collect()).summary.tokens).toBe(200);
}

describe.each(transports)('over %s', (transport) => {
  test('a command says how its rows travelled', async () => {
    const args = [
      'forward',
      '--address',
      cluster.address,
      '--sequences',
      '8',
      '--length',
      '300',
      '--no-feedback',
    ];
    const output = join(directory, `${transport}.bin`);
    const { status, stdout } = await switchyard([
      ...args,
      '--transport',
      transport,
      '--output',
      output,
      '--verify',
    ]);
    expect(status).toBe(0);
    expect(stdout).toMatch(new RegExp(`^routers .* tokens over ${transport} \\(\\S.*\\)`, 'm'));
    expect((await readFile(output)).byteLength).toBe(8 * 300 * hidden * 2);
  });

  test('a client that is killed in the middle of a batch leaves nothing behind', async () => {
    for (let turn = 0; turn < 3; turn += 1) {
      const client = await clientUnderWay(transport);
      client.kill('SIGKILL');
      await untilIdle();
    }
    await expectServing();
  });

  test('a client that stands still is ended, and takes nothing from others', async () => {
    const client = await clientUnderWay(transport);
    client.kill('SIGSTOP');
    await expectServing();
    await untilIdle();
    client.kill('SIGKILL');
    await expectServing();
  });

  test('a router that is killed in the middle of a batch is named at once', async () => {
    const own = await startCluster({ workers: 2 });
    const block = Buffer.alloc(4096 * hidden * 2);
    const input: RowsReader = {
      tokens: longTokens,
      hidden,
      read: (_, count) => Buffer.concat([block, block]).subarray(0, count * hidden * 2),
    };
    const call = await own.client.forward(input, { transport, feedback: false });
    let killed = 0;
    const outcome = (async () => {
      for await (const _ of call) {
        if (killed === 0) void own.kill('coordinator');
        killed ||= performance.now();
      }
    })();
    await expect(outcome).rejects.toMatchObject({ code: 'ROUTER_LOST' });
    // Within a second on a calm machine; a client that only waits notices after 20 s at the earliest.
    expect(performance.now() - killed).toBeLessThan(10_000);
    await own.stop();
  });
});

(native.ucx === null ? test.skip : test)('outputs are the same bits over both', async () => {
  const [grpc, ucx] = await Promise.all(transports.map((name) => readFile(join(directory, `${name}.bin`))));
  expect(grpc!.equals(ucx!)).toBe(true);
});

(native.ucx === null ? test.skip : test)(
  'batches cancelled before their first row leave UCX whole',
  async () => {
    const rows = new Uint8Array(2 * 100 * hidden * 2);
    const options = { transport: 'ucx', sequences: 2, feedback: false } as const;
    const complete = async () => (await cluster.client.forward(rows, options)).collect();
    await complete();
    for (let turn = 0; turn < 5; turn += 1) {
      const cancelled = await cluster.client.forward(rows, { ...options, signal: AbortSignal.abort() });
      await expect(cancelled.collect()).rejects.toMatchObject({ code: 'CANCELLED' });
      expect((await complete()).summary.routers).toMatchObject([{ transport: 'ucx' }]);
    }
  },
);

test('the SDK works where the native addon is missing, over gRPC alone', async () => {
  const copy = join(directory, 'package');
  for (const part of ['dist', 'proto', 'package.json', 'native/CMakeLists.txt']) {
    await cp(join(packageRoot(), part), join(copy, part), { recursive: true });
  }
  await symlink(join(packageRoot(), 'node_modules'), join(copy, 'node_modules'));
  const script = `
    import { SwitchyardClient } from '${copy}/dist/services/client/index.js';
    const client = await SwitchyardClient.connect('${cluster.address}');
    const rows = new Uint8Array(${64 * hidden * 2});
    const { summary } = await (await client.forward(rows, { feedback: false })).collect();
    const strict = await client.forward(rows, { transport: 'ucx' });
    const error = await strict.collect().catch((error) => error.message);
    console.log(JSON.stringify({ routers: summary.routers, error }));
    await client.close();
  `;
  expect(JSON.parse(await outputOf(script))).toMatchObject({
    routers: [{ tokens: 64, transport: 'grpc' }],
    error: expect.stringMatching(/^no way over UCX: the native addon cannot be loaded: .*is not built/),
  });
});

(native.ucx === null ? test.skip : test)(
  'batches go over gRPC where UCX does not reach the router',
  async () => {
    const script = `
    import { SwitchyardClient } from '${packageRoot()}/dist/services/client/index.js';
    const client = await SwitchyardClient.connect('${cluster.address}');
    const rows = new Uint8Array(${hidden * 2});
    const small = await (await client.forward(rows)).collect();
    const large = await (await client.forward(new Uint8Array(${2000 * hidden * 2}))).collect();
    const session = await client.session().forward(rows);
    const strict = client.session({ transport: 'ucx' }).forward(rows);
    const error = await strict.catch((error) => error.message);
    const ways = [small, large, session].map(({ summary }) => summary.routers[0].transport);
    console.log(JSON.stringify({ ways, error }));
    client.destroy();
  `;
    expect(JSON.parse(await outputOf(script, { UCX_TLS: 'self' }))).toEqual({
      ways: ['grpc', 'grpc', 'grpc'],
      error: expect.stringMatching(/^no way over UCX: /),
    });
  },
);
