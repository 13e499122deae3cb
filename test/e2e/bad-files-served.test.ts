import { cp, mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { fixedPort } from '../../bench/fixed-port.js';
import { type Flags, LocalProcess, type ProcessRole } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { Deferred } from '../../services/common/lifecycle.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

const fixture = join('test', 'fixtures', 'mixtral');
const hidden = 48;
let root: string;

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'switchyard-served-'));
});

afterAll(() => rm(root, { recursive: true }));

async function checkpoint(name: string): Promise<{ model: string; weights: string }> {
  const model = join(root, name);
  await cp(fixture, model, { recursive: true });
  return { model, weights: join(model, 'model.safetensors') };
}

/** Changes one bit in the middle of the data, in place. */
async function flipBit(file: string): Promise<void> {
  const handle = await open(file, 'r+');
  const position = Math.floor((await handle.stat()).size * 0.75);
  const byte = new Uint8Array(1);
  await handle.read(byte, 0, 1, position);
  byte[0]! ^= 4;
  await handle.write(byte, 0, 1, position);
  await handle.close();
}

/** Writes `bits` over the first BF16 value of a tensor. */
async function overwrite(file: string, tensor: string, bits: number): Promise<void> {
  const bytes = await readFile(file);
  const dataStart = 8 + Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.subarray(8, dataStart).toString());
  expect(header[tensor].dtype).toBe('BF16');
  bytes.writeUInt16LE(bits, dataStart + header[tensor].data_offsets[0]);
  await writeFile(file, bytes);
}

/** One more worker of a cluster whose experts are placed: it opens the model and is a spare, or ends. */
class SpareWorker {
  readonly lines: string[] = [];
  readonly opened = new Deferred<void>();
  readonly process: LocalProcess;

  constructor(cluster: TestCluster, model: string | null) {
    const flags = { coordinator: cluster.address, name: 'spare', threads: 1, port: 0, metricsPort: 0, model };
    this.process = new LocalProcess('worker', 'spare', flags, {}, (_, line) => {
      this.lines.push(line);
      if (line.includes('model-opened')) this.opened.resolve();
    });
  }

  /** Resolves when it has ended by itself, with this status and what it said of its failure. */
  async failed(status: number): Promise<string> {
    expect(await this.process.exited).toEqual({ code: status, signal: null });
    return this.lines.find((line) => line.includes('worker-failed')) ?? this.lines.join('\n');
  }
}

describe('weights that change while a cluster serves them', () => {
  test.each<[string, (weights: string) => Promise<void>]>([
    ['overwritten in place', flipBit],
    [
      'replaced by a copy',
      async (weights) => {
        const bytes = await readFile(weights);
        await rm(weights);
        await writeFile(weights, bytes);
      },
    ],
    ['cut short', (weights) => truncate(weights, 40_000)],
  ])('%s: a spare ends with the name of the file, and serves nothing of it', async (what, change) => {
    const { model, weights } = await checkpoint(`spare-${what.replaceAll(' ', '-')}`);
    const cluster = await startCluster({
      workers: 1,
      coordinator: { preset: null, model, readyWaitMs: 500 },
    });
    const spare = new SpareWorker(cluster, null);
    await spare.opened.promise;
    await change(weights);
    await cluster.kill('worker-0');
    const failed = await spare.failed(2);
    for (const part of ['MODEL_INVALID', weights]) expect(failed).toContain(part);
    const call = await cluster.client.forward(testRows(8, hidden), { sequences: 1, feedback: false });
    await expect(call.collect()).rejects.toMatchObject({ code: 'NOT_READY' });
    await cluster.stop();
  });
});

test('overwritten in place while the coordinator is away: the next one takes up nothing that is held of the old ones', async () => {
  const { model, weights } = await checkpoint('adopted');
  const lines: string[] = [];
  const start = (role: ProcessRole, name: string, flags: Flags) =>
    new LocalProcess(role, name, { name, port: 0, metricsPort: 0, ...flags }, {}, (_, line) =>
      lines.push(line),
    );
  const port = await fixedPort();
  const first = start('coordinator', 'coordinator', { model, router: false, port });
  const { address } = await first.listening;
  const worker = start('worker', 'worker-0', { coordinator: address, threads: 1 });
  const router = start('router', 'router-0', { coordinator: address });
  const client = await SwitchyardClient.connect((await router.listening).address);
  await client.waitUntilReady(60_000);
  first.kill('SIGKILL');
  await first.exited;
  await flipBit(weights);
  const second = start('coordinator', 'coordinator', { model, router: false, port });
  for (const node of [worker, router]) expect(await node.exited).toEqual({ code: 1, signal: null });
  for (const event of ['worker-failed', 'membership-over']) {
    const failed = lines.find((line) => line.includes(event));
    for (const part of ['MODEL_MISMATCH', 'serves adopted']) expect(failed).toContain(part);
  }
  client.destroy();
  await second.stop(10_000);
});

describe('a worker with files of its own is a member if they are those of the coordinator', () => {
  test.each([
    ['one bit differs', true],
    ['they are equal', false],
  ])('%s', async (_, flip) => {
    const served = await checkpoint(`served-${flip}`);
    const own = await checkpoint(`own-${flip}`);
    if (flip) await flipBit(own.weights);
    const cluster = await startCluster({ workers: 1, coordinator: { preset: null, model: served.model } });
    const worker = new SpareWorker(cluster, own.model);
    if (flip) expect(await worker.failed(1)).toContain('MODEL_MISMATCH');
    else await worker.opened.promise;
    await worker.process.stop(10_000);
    await cluster.stop();
  });
});

describe('weights that are not finite', () => {
  const expert = 'model.layers.1.block_sparse_moe.experts.3.w2.weight';
  const gate = 'model.layers.2.block_sparse_moe.gate.weight';
  const norm = 'model.layers.0.post_attention_layernorm.weight';
  const batch = ['--sequences', '1', '--length', '16'];

  test.each([
    ['NaN in an expert', expert, 0x7fc0],
    ['infinity in a gate', gate, 0xff80],
    ['infinity in a norm', norm, 0x7f80],
  ])('%s is refused by file, tensor, count and the option that allows it', async (what, tensor, bits) => {
    const { model, weights } = await checkpoint(what.replaceAll(' ', '-'));
    await overwrite(weights, tensor, bits);
    const run = ['run', '--model', model, '--workers', '1', ...batch];
    const { status, stderr } = await switchyard(run);
    expect(status).toBe(2);
    for (const part of ['MODEL_INVALID', weights, tensor, 'holds 1 weight', '--allow-non-finite-weights']) {
      expect(stderr).toContain(part);
    }
    const allowed = await switchyard([...run, '--allow-non-finite-weights']);
    expect(allowed.stderr).toBe('');
    expect(allowed.status).toBe(0);
  });
});
