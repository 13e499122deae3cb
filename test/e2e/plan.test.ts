import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import type { Recording } from '../../services/cli/recording.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { listCopies } from '../../services/common/expert-copies.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';

let cluster: TestCluster;
let directory: string;
let recording: string;
const batch = ['--sequences', '8', '--length', '128', '--skew', '1.5', '--no-feedback'];

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-plan-'));
  recording = join(directory, 'load.json');
  cluster = await startCluster({ workers: 2, routers: 1 });
});

afterAll(() => rm(directory, { recursive: true }));

const at = () => ['--address', cluster.address];
const read = async (path: string): Promise<Recording> => JSON.parse(await readFile(path, 'utf8'));

describe('switchyard plan', () => {
  test('says that there is no load before any batch came', async () => {
    const { status, stderr } = await switchyard(['plan', ...at(), '--seconds', '0.1']);
    expect(status).toBe(1);
    expect(stderr).toMatch(/^switchyard: NOT_READY: no rows were routed within 0\.\d s/);
  });

  test('forward --record writes the rows of every expert, a sample of choices, and where experts are', async () => {
    const { status, stderr } = await switchyard(['forward', ...at(), ...batch, '--record', recording]);
    expect({ status, stderr }).toMatchObject({ status: 0 });
    const { workers, layers, topK, model, rebalanceLoads, rebalanceBytesPerSecond } = await read(recording);
    expect(model).toBe('tiny');
    expect([rebalanceLoads, rebalanceBytesPerSecond]).toEqual([8, 256 * 1024 * 1024]);
    expect(workers.map(({ name }) => name).sort()).toEqual(['worker-0', 'worker-1']);
    for (const { memoryBytes, loadBytesPerSecond } of workers) {
      expect(memoryBytes).toBeGreaterThan(0);
      expect(loadBytesPerSecond).toBeGreaterThan(0);
    }
    expect(workers.some(({ rowsPerSecond }) => rowsPerSecond! > 0)).toBe(true);
    const { view } = await cluster.client.describeCluster({ placement: true });
    for (const { layer, rows, workersOf, choices, expertBytes } of layers) {
      expect(rows.reduce((sum, count) => sum + count, 0)).toBe(8 * 128 * topK);
      expect(choices).toHaveLength(1024 * topK);
      // All tokens of the batch are in the sample.
      for (const [expert, count] of rows.entries())
        expect(choices!.filter((one) => one === expert)).toHaveLength(count);
      const placed = view!.placement!.layers.find((one) => one.layer === layer)!;
      const names = listCopies(placed).map((copies) =>
        copies.map((worker) => view!.placement!.workers[worker]!),
      );
      expect(workersOf.map((copies) => copies.map((worker) => workers[worker]!.name))).toEqual(names);
      const load = view!.nodes.find(({ name }) => name === 'worker-0')!.figures!.load!;
      expect(expertBytes * load.expertsTotal).toBe(load.bytesTotal);
    }
  });

  test('shows present beside target for a recording, and says that nothing is applied', async () => {
    const args = ['plan', '--recording', recording, '--horizon', '31536000'];
    const { status, stdout } = await switchyard(args);
    expect(status).toBe(0);
    expect(stdout).toMatch(/^balancedness, mean of layers +0\.\d{3} +\d\.\d{3}$/m);
    expect(stdout).toMatch(/^worker-0 /m);
    expect(stdout).toContain(
      'dry run: switchyard rebalance --recording FILE plans for a recording from where copies are then, and applies that',
    );
    const { stdout: json } = await switchyard([...args, '--json']);
    const planned = JSON.parse(json);
    expect(planned.applied).toBe(false);
    expect(planned.target.imbalance).toBeLessThan(planned.present.imbalance);
    expect(planned.netGainSeconds).toBeGreaterThan(0);
    expect(planned.copiesToLoad).toBeGreaterThan(0);
    for (const { workersOf } of planned.layers)
      for (const names of workersOf) expect(['worker-0', 'worker-1']).toEqual(expect.arrayContaining(names));
    // What a token's experts are on can be told exactly: the sample is the whole batch.
    expect(planned.present.workersPerToken).toBeGreaterThan(1);
    expect(planned.present.workersPerToken).toBeLessThanOrEqual(2);
  });

  test('plans for the devices of a topology file: what it does not list is gone, what is new takes copies', async () => {
    const { workers } = await read(recording);
    const kept = `${workers[0]!.host}`;
    const topology = join(directory, 'hosts.yaml');
    const hosts = [`{name: "${kept}", devices: [cpu]}`, '{name: other, devices: [cpu, cpu]}'];
    await writeFile(topology, `hosts: [${hosts.join(', ')}]\n`);
    const args = ['plan', '--recording', recording, '--topology', topology, '--copies', '2', '--json'];
    const planned = JSON.parse((await switchyard(args)).stdout);
    expect(planned.present.missing).toBe(8);
    expect(planned.target.missing).toBe(0);
    for (const { workersOf } of planned.layers)
      for (const names of workersOf as string[][]) {
        expect(names.length).toBeGreaterThanOrEqual(2);
        expect(new Set(names.map((name) => name.startsWith('other/'))).size).toBe(2);
      }
  });

  test('measures what all routers of a live cluster send', async () => {
    const over = new AbortController();
    const rows = new Uint8Array(256 * 256 * 2).fill(0x3c);
    let batches = 0;
    const sending = (async () => {
      for (; !over.signal.aborted; batches += 1) {
        const call = await cluster.client.forward(rows, { sequences: 2 });
        await call.collect();
      }
    })();
    const { status, stdout, stderr } = await switchyard(['plan', ...at(), '--seconds', '2', '--json']);
    over.abort();
    await sending;
    expect({ status, stderr }).toMatchObject({ status: 0 });
    const planned = JSON.parse(stdout);
    expect(planned.seconds).toBeGreaterThanOrEqual(2);
    expect(planned.rows).toBeGreaterThan(0);
    expect(planned.rows).toBeLessThanOrEqual(batches * 256 * 2 * 2);
    expect(planned.layers).toHaveLength(2);
    expect(planned.target.imbalance).toBeLessThanOrEqual(planned.present.imbalance);
  });

  test('every router tells what it alone has sent to each expert', async () => {
    const { view } = await cluster.client.describeCluster();
    const addresses = view!.nodes.filter(({ role }) => role === 'ROUTER').map(({ address }) => address);
    const routed = async () => {
      let rows = 0;
      for (const address of addresses) {
        const client = await SwitchyardClient.connect(address);
        const described = await client.describeCluster({ placement: true });
        rows += described.routed.flatMap((layer) => layer.rows).reduce((sum, one) => sum + one, 0);
        client.destroy();
      }
      return rows;
    };
    expect(addresses).toHaveLength(2);
    const before = await routed();
    const call = await cluster.client.forward(new Uint8Array(256 * 256 * 2), { sequences: 2 });
    await call.collect();
    const { routers } = await call.summary;
    expect(routers.map(({ tokens }) => tokens)).toEqual([128, 128]);
    expect((await routed()) - before).toBe(256 * 2 * 2);
  });

  test('names what is wrong with a recording', async () => {
    const bad = join(directory, 'bad.json');
    await writeFile(bad, JSON.stringify({ ...(await read(recording)), seconds: 0 }));
    const { status, stderr } = await switchyard(['plan', '--recording', bad]);
    expect(status).toBe(2);
    expect(stderr).toBe(
      `switchyard: CONFIG_INVALID: ${bad}: seconds is 0; allowed: a number from 0.000001 to 1000000000\n`,
    );
  });

  test('says which copies are loaded whatever that gains', async () => {
    const { stdout } = await switchyard(['plan', '--recording', recording, '--copies', '2']);
    expect(stdout).toMatch(
      /^to load +16 copies, 12\.0 MiB \(16 since each expert has 2 at least, whatever that gains\), in /m,
    );
  });

  test('says with numbers that copies fit nowhere', async () => {
    const { status, stderr } = await switchyard(['plan', '--recording', recording, '--copies', '3']);
    expect(status).toBe(1);
    expect(stderr).toMatch(/^switchyard: RESOURCE_EXHAUSTED: copiesMin is 3; allowed: at most 2/);
  });
});
