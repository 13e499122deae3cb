import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import type { Recording } from '../../services/cli/recording.js';
import { listCopies } from '../../services/common/expert-copies.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { Load } from '../support/load.js';
import { until } from '../support/until.js';

const operator = { SWITCHYARD_TOKEN: 'an-operator-token' };
const tokens = { client: 'a-client-token', node: 'a-node-token', operator: operator.SWITCHYARD_TOKEN };
const names = ['worker-0', 'worker-1', 'worker-2'];
let cluster: TestCluster;
let load: Load | null = null;

beforeAll(async () => {
  // Copies move when an operator says so, and not by themselves.
  cluster = await startCluster({ workers: 3, tokens, coordinator: { rebalanceSeconds: 0 } });
});

afterEach(async () => {
  await load?.stop().catch(() => {});
  load = null;
});

const run = (...args: string[]) => switchyard([...args, '--address', cluster.address], operator);

async function node(name: string) {
  const { view } = await cluster.client.describeCluster();
  return view!.nodes.find((one) => one.name === name)!;
}

/** Whoever answers for the cluster, a router too, comes to know an operator's mark. */
const marked = (name: string, mark: string) =>
  until(
    () => node(name),
    (one) => one.mark === mark,
  );

/** Whether every copy is where it shall be. */
async function isSettled(): Promise<boolean> {
  const headers = { authorization: `Bearer ${tokens.operator}` };
  const answer = await fetch(`${cluster.metricsUrl}/state/experts`, { headers });
  const { experts } = (await answer.json()) as {
    experts: { copies: { worker: string; state: string }[]; target: string[] }[];
  };
  return experts.every(
    ({ copies, target }) =>
      copies.every(({ state }) => state === 'serving') &&
      JSON.stringify(copies.map(({ worker }) => worker).sort()) === JSON.stringify([...target].sort()),
  );
}

/** Expert after expert, the names of the workers that serve it. */
async function workersOf(client = cluster.client): Promise<string[][]> {
  const { workers, layers } = (await client.describeCluster({ placement: true })).view!.placement!;
  return layers.flatMap((layer) => listCopies(layer).map((copies) => copies.map((at) => workers[at]!)));
}

describe('who may tell the coordinator', () => {
  test.each([
    ['nobody', {}],
    ['a client', { SWITCHYARD_TOKEN: tokens.client }],
    ['a node', { SWITCHYARD_TOKEN: tokens.node }],
  ])('is not %s', async (_, environment: Record<string, string>) => {
    for (const args of [
      ['cordon', 'worker-0'],
      ['drain', 'worker-0'],
      ['undrain', 'worker-0'],
      ['rebalance'],
    ]) {
      const { status, stderr } = await switchyard([...args, '--address', cluster.address], environment);
      expect(stderr).toMatch(/^switchyard: (UNAUTHENTICATED|PERMISSION_DENIED): .*the operator token/);
      expect(status).toBe(1);
    }
    expect(await node('worker-0')).toMatchObject({ mark: 'NO_MARK' });
  });
});

describe('a worker that an operator names', () => {
  test('must be one of the cluster: those that there are are named', async () => {
    for (const command of ['cordon', 'drain', 'undrain']) {
      const { status, stderr } = await run(command, 'worker-9');
      expect(stderr).toBe(
        'switchyard: INVALID_ARGUMENT: worker is "worker-9"; allowed: worker-0, worker-1, worker-2\n',
      );
      expect(status).toBe(2);
    }
    const { stderr } = await run('drain');
    expect(stderr).toContain('worker is missing; allowed: the name of a worker');
  });

  test('drained under load, it gives its experts to the others, costs no batch, and may be ended; undrained, it has copies again', async () => {
    load = await Load.start(cluster.client);
    await load.more(4);
    expect((await node('worker-1')).serving).toBeGreaterThan(0);
    expect((await run('drain', 'worker-1')).stdout).toMatch(/^worker-1: its copies go elsewhere/);
    const drained = await until(
      () => node('worker-1'),
      ({ loading, serving, draining }) => loading + serving + draining === 0,
    );
    expect(drained).toMatchObject({ mark: 'DRAINED', state: 'READY', experts: expect.any(Number) });
    await load.more(8);
    const placed = await workersOf();
    expect(placed.every((copies) => copies.length === 1 && copies[0] !== 'worker-1')).toBe(true);
    expect((await run('status')).stdout).toMatch(/^worker-1 .*drained/m);

    expect((await run('undrain', 'worker-1')).stdout).toBe('worker-1: may have copies again\n');
    await marked('worker-1', 'NO_MARK');
    await load.more(4);
    await load.stop();
  });

  test('cordoned, it keeps what it has and gets nothing new', async () => {
    expect((await run('cordon', 'worker-0')).status).toBe(0);
    const before = (await node('worker-0')).serving;
    expect((await run('drain', 'worker-2')).status).toBe(0);
    await until(
      () => node('worker-2'),
      ({ serving, draining }) => serving + draining === 0,
    );
    await until(async () => (await cluster.client.describeCluster()).view!.ready);
    expect(await marked('worker-0', 'CORDONED')).toMatchObject({ serving: before });
    for (const name of ['worker-0', 'worker-2']) await run('undrain', name);
    await marked('worker-0', 'NO_MARK');
  });
});

describe('switchyard rebalance', () => {
  let directory: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'switchyard-operate-'));
  });
  afterAll(() => rm(directory, { recursive: true }));

  /** A load of this cluster of which the plan is known: expert 0 of each layer is hot, and worker-2 has nothing. */
  async function record(change: (recording: Recording) => void = () => {}): Promise<string> {
    const { model } = await cluster.client.describeCluster();
    const file = join(directory, 'load.json');
    const recording: Recording = {
      format: 'switchyard-recording',
      version: 2,
      model: model!.name,
      hidden: model!.hidden,
      topK: 2,
      rebalanceLoads: 8,
      rebalanceBytesPerSecond: 1e9,
      seconds: 10,
      workers: names.map((name) => ({
        ...{ name, host: 'local', device: 'cpu', memoryBytes: 2 ** 30 },
        ...{ rowsPerSecond: 1_000, sizes: [], loadBytesPerSecond: 1e9 },
      })),
      layers: model!.layers.map(({ layer, experts }) => ({
        layer,
        expertBytes: Number(model!.expertBytes),
        rows: Array.from({ length: experts }, (_, expert) => (expert === 0 ? 9_000 : 100)),
        workersOf: Array.from({ length: experts }, (_, expert) => [expert % 2]),
        choices: null,
      })),
    };
    change(recording);
    await writeFile(file, JSON.stringify(recording));
    return file;
  }

  test('with a recording brings copies to where its load wants them, under load, and costs no batch', async () => {
    const file = await record();
    load = await Load.start(cluster.client);
    const { stdout, stderr } = await run('rebalance', '--recording', file);
    expect({ stdout, stderr }).toMatchObject({ stdout: expect.stringMatching(/^to load [\d,]+ copies, /) });
    await until(isSettled);
    const placed = await workersOf();
    for (const hot of [placed[0]!, placed[placed.length / 2]!]) expect(hot.length).toBeGreaterThan(1);
    await load.more(4);
    await load.stop();
    expect((await run('rebalance', '--recording', file)).stdout).toBe('nothing to move: no change pays\n');
  });

  test.each<[string, (recording: Recording) => void]>([
    [
      'one worker of those that there are now',
      (one) => {
        one.workers.splice(1);
        for (const layer of one.layers) layer.workersOf = layer.workersOf.map(() => [0]);
      },
    ],
    ['a worker that is gone', ({ workers }) => Object.assign(workers[2]!, { name: 'somebody' })],
    ['some layers alone', ({ layers }) => layers.splice(1)],
  ])('plans from where copies are now, on the workers of now, for a recording of %s', async (_, change) => {
    // What another load asked for is brought where it shall be first.
    await until(isSettled);
    await run('rebalance', '--recording', await record());
    await until(isSettled);
    const before = await workersOf();
    const file = await record(change);
    expect(await run('rebalance', '--recording', file)).toEqual({
      ...{ status: 0, stderr: '' },
      stdout: 'nothing to move: no change pays\n',
    });
    expect(await workersOf()).toEqual(before);
  });

  test('with a recording leaves out workers that are drained, and plan does too', async () => {
    await until(isSettled);
    const file = await record();
    expect((await run('drain', 'worker-1')).status).toBe(0);
    await marked('worker-1', 'DRAINED');
    await until(isSettled);
    const { status, stderr } = await run('rebalance', '--recording', file);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    await until(isSettled);
    expect((await workersOf()).flat()).not.toContain('worker-1');
    load = await Load.start(cluster.client);
    await load.more(2);
    const planned = JSON.parse((await run('plan', '--seconds', '1', '--json')).stdout);
    await load.stop();
    const target = planned.layers.flatMap(({ workersOf }: { workersOf: string[][] }) => workersOf.flat());
    expect(target).toContain('worker-0');
    expect(target).not.toContain('worker-1');
    await run('undrain', 'worker-1');
    await marked('worker-1', 'NO_MARK');
  });

  test('without one has the coordinator plan for what routers send', async () => {
    load = await Load.start(cluster.client);
    await load.more(8);
    const { status, stdout } = await run('rebalance');
    expect(stdout).toMatch(/^(to load [\d,]+ copies, .*; net gain |nothing to move: no change pays)/);
    expect(status).toBe(0);
    await load.more(4);
    await load.stop();
  });

  test.each<[string, (recording: Recording) => void]>([
    ['model is "another"; allowed: "tiny"', (one) => Object.assign(one, { model: 'another' })],
    ['hidden is 512; allowed: 256', (one) => Object.assign(one, { hidden: 512 })],
    ['topK is 1; allowed: 2', (one) => Object.assign(one, { topK: 1 })],
    [
      'layers.1.expertBytes is 77; allowed: 786432',
      ({ layers }) => Object.assign(layers[1]!, { expertBytes: 77 }),
    ],
    ['layers.0.layer is 77; allowed: 0, 1', ({ layers }) => Object.assign(layers[0]!, { layer: 77 })],
    [
      'the length of layers.0.rows is 7; allowed: 8',
      ({ layers }) => {
        layers[0]!.rows.pop();
        layers[0]!.workersOf.pop();
      },
    ],
  ])('refuses a recording of another model: %s', async (problem, change) => {
    const file = await record(change);
    expect(await run('rebalance', '--recording', file)).toEqual({
      status: 2,
      stdout: '',
      stderr: `switchyard: CONFIG_INVALID: ${file}: ${problem}, as the cluster's model has it\n`,
    });
  });

  test("leaves a coordinator's settings in the environment to the coordinator", async () => {
    const environment = {
      ...{ SWITCHYARD_COPIES: '3', SWITCHYARD_REPLICA_SLOTS: '1', SWITCHYARD_TOPOLOGY: 'kubernetes' },
      ...{ SWITCHYARD_LAYERS: '4', SWITCHYARD_SEED: '5' },
    };
    const file = await record();
    const at = ['--address', cluster.address];
    const settled = ['plan', '--recording', file, '--json'];
    const { stdout } = await switchyard(settled);
    for (const args of [
      ['rebalance', ...at],
      ['forward', ...at, '--sequences', '1', '--length', '8'],
      ['rebalance', ...at, '--recording', file],
      settled,
    ]) {
      const result = await switchyard(args, { ...operator, ...environment });
      expect(result).toMatchObject({ status: 0, stderr: '' });
      if (args === settled) expect(result.stdout).toBe(stdout);
    }
    // What is of no use here is for another command.
    const plan = { SWITCHYARD_PLAN_COPIES: '2', SWITCHYARD_HORIZON: '60' };
    expect(await switchyard(['rebalance', ...at], { ...operator, ...plan })).toMatchObject({ stderr: '' });
    const planned = JSON.parse((await switchyard(settled, plan)).stdout);
    expect(planned.horizonSeconds).toBe(60);
    for (const { workersOf } of planned.layers)
      for (const holders of workersOf) expect(holders.length).toBeGreaterThanOrEqual(2);
  });

  test('names what is wrong, and moves nothing', async () => {
    // What the load before asked for is brought where it shall be first.
    await until(isSettled);
    const before = await workersOf();
    const topology = join(directory, 'hosts.yaml');
    await writeFile(topology, 'hosts: [{ name: elsewhere, devices: [cpu] }]\n');
    expect((await run('rebalance', '--recording', await record(), '--topology', topology)).stderr).toMatch(
      /^switchyard: INVALID_ARGUMENT: workers of layer 0 expert \d+ is .*elsewhere.*; allowed: different ones of worker-0, worker-1, worker-2/,
    );
    expect((await run('rebalance', '--copies', '2')).stderr).toContain(
      '--copies is 2; allowed: only with recording',
    );
    expect(await workersOf()).toEqual(before);
  });
});

test('with copies of 2 each expert is on two of three workers, and one that is killed under load costs no batch', async () => {
  const doubled = await startCluster({ workers: 3, coordinator: { copies: 2, replicaSlots: 0 } });
  const twice = (copies: string[]) => new Set(copies).size === 2;
  const { client } = doubled;
  await until(
    () => workersOf(client),
    (placed) => placed.every(twice),
  );
  load = await Load.start(client);
  await load.more(4);
  const directory = await mkdtemp(join(tmpdir(), 'switchyard-operate-'));
  const file = join(directory, 'load.json');
  const at = ['--address', doubled.address];
  await switchyard(['forward', ...at, '--sequences', '2', '--length', '32', '--record', file]);
  const rebalance = (...args: string[]) => switchyard(['rebalance', ...at, '--recording', file, ...args]);
  // Copies that are there are not taken away for that alone.
  for (const args of [['--copies', '1'], []])
    expect(await rebalance(...args)).toMatchObject({ status: 0, stderr: '' });
  await rm(directory, { recursive: true });
  expect((await workersOf(client)).every((copies) => new Set(copies).size >= 2)).toBe(true);
  await doubled.kill('worker-1');
  await load.more(8);
  await until(
    () => workersOf(client),
    (placed) => placed.every((copies) => twice(copies) && !copies.includes('worker-1')),
  );
  await load.more(4);
  await load.stop();
  await doubled.stop();
});
