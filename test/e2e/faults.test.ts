import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, test } from '@jest/globals';
import { LocalProcess } from '../../services/cli/local-process.js';
import { type ForwardOptions, type RowsReader, SwitchyardClient } from '../../services/client/index.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

/** The preset `tiny`. */
const hidden = 256;
const block = testRows(256, hidden);

/** A batch that takes a while: rows are made of one block, and `onRead` sees every read. */
function longRows(tokens: number, onRead: (first: number, count: number) => unknown = () => {}): RowsReader {
  return {
    tokens,
    hidden,
    read: async (first, count) => {
      await onRead(first, count);
      const rows = new Uint8Array(count * hidden * 2);
      for (let at = 0; at < rows.length; at += block.length) {
        rows.set(block.subarray(0, Math.min(block.length, rows.length - at)), at);
      }
      return rows;
    },
  };
}

const longTokens = 1_024_000;
const long: ForwardOptions = { sequences: 64, feedback: false };

/** The cluster answers a small batch completely. */
async function expectServing(client: SwitchyardClient): Promise<void> {
  const call = await client.forward(testRows(600, hidden), { sequences: 6, feedback: false });
  const { summary } = await call.collect();
  expect(summary.tokens).toBe(600);
}

/** After the first half of a batch's rows no more can be read, so that it does not end by itself. */
const stuck = (first: number) => (first % (longTokens / 2) > longTokens / 4 ? new Promise(() => {}) : null);

/** Runs a long batch, calls `disturb` after its first answers, and returns how it ended. */
async function disturbed(
  client: SwitchyardClient,
  disturb: () => unknown,
  options: ForwardOptions = {},
  onRead: (first: number) => unknown = stuck,
) {
  const call = await client.forward(longRows(longTokens, onRead), { ...long, ...options });
  let chunks = 0;
  try {
    for await (const _ of call) if (++chunks === 3) await disturb();
    return { chunks, error: null };
  } catch (error) {
    return { chunks, error: error as Error & { code: string; details: Record<string, unknown> } };
  }
}

describe('a cluster', () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    // Much less than the rows of a long batch.
    const budgetBytes = '64MiB';
    cluster = await startCluster({
      workers: 2,
      routers: 1,
      coordinator: { budgetBytes },
      router: { budgetBytes },
    });
  });

  /** The routers have forgotten every batch. */
  async function untilNoBatches(): Promise<void> {
    const urls = [cluster.metricsUrl, (await cluster.process('router-0').listening).metricsUrl];
    for (const url of urls) {
      for (;;) {
        const state = (await (await fetch(`${url}/state`)).json()) as {
          batches?: number;
          router?: { batches: number };
        };
        if ((state.router?.batches ?? state.batches) === 0) break;
        await sleep(20);
      }
    }
  }

  test('serves 64 clients at once, to each its own answers', async () => {
    const alone = await Promise.all(
      [1, 2, 3, 4].map(async (seed) => {
        const call = await cluster.client.forward(testRows(300, hidden, seed), {
          sequences: 3,
          feedback: false,
        });
        return Buffer.from((await call.collect()).rows);
      }),
    );
    await Promise.all(
      Array.from({ length: 64 }, async (_, index) => {
        const client = await SwitchyardClient.connect(cluster.address, { timeoutMs: 60_000 });
        const seed = (index % 4) + 1;
        const call = await client.forward(testRows(300, hidden, seed), { sequences: 3, feedback: false });
        const { rows } = await call.collect();
        await client.close();
        expect(alone[seed - 1]!.equals(rows)).toBe(true);
      }),
    );
  });

  test('stops reading from a client that stops reading, and serves the others', async () => {
    let read = 0;
    const call = await cluster.client.forward(
      longRows(longTokens, (_, count) => {
        read += count;
      }),
      long,
    );
    const answers = call[Symbol.asyncIterator]();
    await answers.next();
    let before = -1;
    while (before !== read) {
      before = read;
      await sleep(1_000);
    }
    // What was taken beyond the first answers is bounded by the budgets.
    expect(read).toBeLessThan(longTokens / 2);
    const other = await SwitchyardClient.connect(cluster.address);
    await expectServing(other);
    await other.close();
    await answers.return?.();
    await expect(call.summary).rejects.toMatchObject({ code: 'CANCELLED' });
  });

  test('forgets a client that disconnects in the middle of a batch', async () => {
    const client = await SwitchyardClient.connect(cluster.address);
    const { error } = await disturbed(client, () => client.destroy());
    expect(error?.code).toBe('CANCELLED');
    await untilNoBatches();
    await expectServing(cluster.client);
  });

  test('ends a batch at its deadline, and at the abort of its signal', async () => {
    const late = await disturbed(cluster.client, () => {}, { deadlineMs: 500 });
    expect(late.error).toMatchObject({ code: 'DEADLINE_EXCEEDED' });
    const controller = new AbortController();
    const aborted = await disturbed(cluster.client, () => controller.abort(), { signal: controller.signal });
    expect(aborted.error).toMatchObject({ code: 'CANCELLED' });
    await expectServing(cluster.client);
  });

  test('refuses what does not fit by name and value, and is unharmed', async () => {
    const { client } = cluster;
    const refused: [string, ForwardOptions, Uint8Array | RowsReader][] = [
      ['UNKNOWN_LAYER', { layers: { first: 0, last: 9 } }, block],
      ['INVALID_ARGUMENT', { sequences: 3 }, block],
      ['INVALID_ARGUMENT', {}, block.subarray(0, 700)],
      ['INVALID_ARGUMENT', {}, { tokens: 4, hidden: 128, read: () => new Uint8Array(4 * 256) }],
      ['INVALID_ARGUMENT', {}, { tokens: 4, hidden, read: () => new Uint8Array(100) }],
    ];
    for (const [code, options, input] of refused) {
      await expect(client.forward(input, options).then((call) => call.collect())).rejects.toMatchObject({
        code,
      });
    }
    const given = (_first: number, count: number) => ({
      experts: new Uint32Array(count * 4).fill(8),
      weights: new Float32Array(count * 4).fill(0.5),
    });
    const outOfRange = client.forward(block, { given }).then((call) => call.collect());
    await expect(outOfRange).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('8'),
    });
    const broken = testRows(256, hidden);
    new Uint16Array(broken.buffer)[1000] = 0x7fc0;
    const refusing = client.forward(broken, { refuseNonFinite: true }).then((call) => call.collect());
    await expect(refusing).rejects.toMatchObject({ code: 'NON_FINITE' });
    const { summary } = await (await client.forward(broken)).collect();
    expect(summary.nonFiniteTokens).toBe(1);
    await expectServing(client);
  });

  test('refuses a worker with another model, and one whose name is taken', async () => {
    const flags = { coordinator: cluster.address, port: 0, metricsPort: 0, threads: 1 };
    const named = new LocalProcess('worker', 'second', { ...flags, name: 'worker-0' }, {}, () => {});
    expect((await named.exited).code).toBe(1);
    expect(named.exitError(await named.exited).code).toBe('NAME_TAKEN');
    const model = 'test/fixtures/mixtral';
    const foreign = new LocalProcess('worker', 'third', { ...flags, name: 'foreign', model }, {}, () => {});
    expect((await foreign.exited).code).toBe(1);
    expect(foreign.exitError(await foreign.exited).code).toBe('MODEL_MISMATCH');
    await expectServing(cluster.client);
  });

  test('names a port that is in use', async () => {
    const flags = { port: Number(cluster.address.split(':')[1]), metricsPort: 0, preset: 'tiny' };
    const second = new LocalProcess('coordinator', 'second', flags, {}, () => {});
    const exit = await second.exited;
    expect(exit.code).toBe(2);
    expect(second.exitError(exit).message).toMatch(/status 2: port is \d+: in use/);
  });
});

describe('a process that dies in the middle of a batch', () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    // Longer than it takes to see that the worker is gone, and less than a test may take.
    // Each has memory for its share alone.
    const worker = { memory: '6MiB' };
    cluster = await startCluster({ workers: 2, routers: 1, coordinator: { readyWaitMs: 1_000 }, worker });
  });

  test('a router: the batch ends with ROUTER_LOST, and the other router serves', async () => {
    const { error } = await disturbed(cluster.client, () => cluster.kill('router-0'));
    expect(error).toMatchObject({ code: 'ROUTER_LOST' });
    expect(error?.message).toContain((await cluster.process('router-0').listening).address);
    await cluster.client.waitUntilReady(10_000);
    await expectServing(cluster.client);
  });

  test('then a worker that does not come back: once readyWaitMs is over the batch ends with its name, layer and expert', async () => {
    // Rows that are read later need the worker.
    const { error } = await disturbed(
      cluster.client,
      () => cluster.kill('worker-1'),
      {},
      () => null,
    );
    expect(error?.message).toContain('no other copy came within reach in 1000 ms');
    expect(error).toMatchObject({ code: 'WORKER_LOST', details: { worker: 'worker-1' } });
    expect(error?.details).toHaveProperty('layer');
    expect(error?.details).toHaveProperty('expert');
    const after = await cluster.client
      .forward(block, { deadlineMs: 2_000 })
      .then((call) => call.collect())
      .catch((thrown) => thrown);
    expect(after.code).toMatch(/NOT_READY|DEADLINE_EXCEEDED|WORKER_LOST/);
  });
});

test('a coordinator told to end drains its batches, refuses new ones, and exits with 0', async () => {
  const cluster = await startCluster({ workers: 2, coordinator: { drainMs: 60_000 } });
  const coordinator = cluster.process('coordinator');
  let refusal: Promise<unknown> | null = null;
  const tokens = 64_000;
  const call = await cluster.client.forward(longRows(tokens), { sequences: 8, feedback: false });
  let answered = 0;
  for await (const chunk of call) {
    answered += chunk.count;
    if (refusal) continue;
    coordinator.kill('SIGTERM');
    while (!cluster.lines.some((line) => line.includes('"event":"stopping"'))) await sleep(10);
    refusal = cluster.client.forward(block).then((other) => other.collect());
    refusal.catch(() => {});
  }
  expect(answered).toBe(tokens);
  await expect(refusal).rejects.toMatchObject({ code: expect.stringMatching(/DRAINING|NOT_READY/) });
  expect(await coordinator.exited).toEqual({ code: 0, signal: null });
  await cluster.stop();
});

test('a batch for a cluster that never gets its workers ends within its deadline', async () => {
  const coordinator = new LocalProcess(
    'coordinator',
    'coordinator',
    { preset: 'tiny', workers: 2, port: 0, metricsPort: 0 },
    {},
    () => {},
  );
  const { address } = await coordinator.listening;
  const client = await SwitchyardClient.connect(address);
  await expect(client.waitUntilReady(1_000)).rejects.toMatchObject({ code: 'NOT_READY' });
  const started = performance.now();
  const refused = client.forward(block, { deadlineMs: 1_000 }).then((call) => call.collect());
  await expect(refused).rejects.toMatchObject({ code: expect.stringMatching(/NOT_READY|DEADLINE_EXCEEDED/) });
  // The router's own patience would be 30 s.
  expect(performance.now() - started).toBeLessThan(20_000);
  await client.close();
  expect(await coordinator.stop(5_000)).toEqual({ code: 0, signal: null });
});
