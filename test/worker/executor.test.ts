import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { type ExpertBackend, native, type Slab } from '../../native/index.js';
import { type CallCounts, rowsFrom } from '../../services/common/call-sizes.js';
import { createRegistry } from '../../services/common/metrics.js';
import { openModel } from '../../services/model/load.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import type { TokenBatch, TokenBatchMeta, TokenBatchResult } from '../../services/transport/link.js';
import { Executor } from '../../services/worker/executor.js';
import { executorMetrics } from '../../services/worker/metrics.js';

const hidden = 64;
const experts = 4;
const layers = 2;
const rowBytes = hidden * 2;

native.configure({ slabBytesMax: 256 * 1024 * 1024, threads: 1 });

let backend: ExpertBackend;
/** All tokens that tests draw rows from. */
let pool: Slab;
const poolRows = 64;
/** Bits of every (layer, expert, pool row), each computed alone. */
const alone = new Map<string, string>();

async function loadExpert(layer: number, expert: number) {
  const model = await openModel({
    kind: 'synthetic',
    spec: { name: 'test', hidden, ffn: 96, experts, topK: 2, layers, activation: 'swiglu', seed: 7 },
  });
  return backend.load(model.expert(layer, expert));
}

async function createExecutor(
  maxRows = 1024,
  computing = backend,
): Promise<{ executor: Executor; totals: CallCounts }> {
  const metrics = executorMetrics(createRegistry('worker', 'test', nativeRuntime.usage));
  const executor = new Executor({
    backend: computing,
    runtime: nativeRuntime,
    worker: 'w7',
    hidden,
    maxRows,
    weighsInput: false,
    metrics,
    onDeviceLost: () => {},
  });
  for (let layer = 0; layer < layers; layer += 1)
    for (let expert = 0; expert < experts; expert += 1)
      executor.add(layer, expert, await loadExpert(layer, expert));
  return { executor, totals: metrics.totals };
}

interface Wanted {
  layer: number;
  /** Expert to rows of the pool. */
  segments: [expert: number, rows: number[]][];
}

/** A token batch whose row i is row `tokens[i]` of the pool: every row once, as a router packs it. */
function tokenBatch({ layer, segments }: Wanted, fields: Partial<TokenBatchMeta> = {}): TokenBatch {
  const tokens = [...new Set(segments.flatMap(([, rows]) => rows))];
  const rows = native.allocateSlab(tokens.length * rowBytes);
  const [from, to] = [pool.view(), rows.view()];
  for (const [i, token] of tokens.entries())
    to.set(from.subarray(token * rowBytes, (token + 1) * rowBytes), i * rowBytes);
  const meta: TokenBatchMeta = {
    batchId: 'b',
    chunk: 0,
    layer,
    attempt: 0,
    epoch: 1,
    hidden,
    rowCount: tokens.length,
    deadlineMs: Number.POSITIVE_INFINITY,
    combine: 'exact',
    segments: Uint32Array.from(segments.flatMap(([expert, list]) => [expert, list.length])),
    rowIndices: Uint32Array.from(segments.flatMap(([, list]) => list.map((token) => tokens.indexOf(token)))),
    weights: null,
    traceparent: '',
    ...fields,
  };
  return { meta, rows };
}

const bits = (view: Uint8Array, row: number) =>
  Buffer.from(view.subarray(row * rowBytes, (row + 1) * rowBytes)).toString('hex');

function expectExact({ layer, segments }: Wanted, result: TokenBatchResult): void {
  const pairs = segments.flatMap(([expert, rows]) => rows.map((row) => `${layer}/${expert}/${row}`));
  expect(result.rowCount).toBe(pairs.length);
  const view = result.rows.view();
  for (const [i, pair] of pairs.entries()) expect(bits(view, i)).toBe(alone.get(pair));
  result.rows.release();
}

beforeAll(async () => {
  backend = native.createCpuBackend({ threads: 2 });
  pool = await native.synthesizeTokens({
    seed: 3,
    firstToken: 0,
    count: poolRows,
    hidden,
    skew: 1,
    topics: 8,
  });
  for (let layer = 0; layer < layers; layer += 1) {
    for (let expert = 0; expert < experts; expert += 1) {
      const weights = await loadExpert(layer, expert);
      for (let row = 0; row < poolRows; row += 1) {
        const output = native.allocateSlab(rowBytes);
        const indices = Uint32Array.of(row);
        const input = { rows: pool, indices, output, outputRow: 0, inputWeights: null };
        await backend.forward([{ expert: weights, inputs: [input] }]);
        alone.set(`${layer}/${expert}/${row}`, bits(output.view(), 0));
        output.release();
      }
      weights.release();
    }
  }
});

test('the rows that tests compare with are all different', () => {
  expect(new Set(alone.values()).size).toBe(layers * experts * poolRows);
});

afterAll(() => backend.close());

const wanted: fc.Arbitrary<Wanted> = fc.record({
  layer: fc.nat({ max: layers - 1 }),
  segments: fc
    .uniqueArray(fc.nat({ max: experts - 1 }), { minLength: 1, maxLength: experts })
    .chain((chosen) =>
      fc.tuple(
        ...chosen.map((expert) =>
          fc.tuple(fc.constant(expert), fc.uniqueArray(fc.nat({ max: poolRows - 1 }), { minLength: 1 })),
        ),
      ),
    ),
});

describe('executor', () => {
  test('every row of every token batch comes back once, with the bits it has when computed alone, however calls are cut', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(wanted, { minLength: 1, maxLength: 12 }),
        fc.integer({ min: 1, max: 40 }),
        async (all, maxRows) => {
          const { executor, totals } = await createExecutor(maxRows);
          const answers = all.map((one) => executor.submit(tokenBatch(one), 'r'));
          const results = await Promise.all(answers);
          for (const [i, one] of all.entries()) expectExact(one, results[i]!);
          expect(executor.idle).toBe(true);
          expect(executor.bytesHeld).toBe(0);
          expect(executor.rowsQueued).toBe(0);
          const { rowsComputed, rowsBySize } = totals.report();
          expect(rowsComputed).toBe(results.reduce((sum, { rowCount }) => sum + rowCount, 0));
          expect(rowsBySize.reduce((sum, rows) => sum + rows)).toBe(rowsComputed);
          for (const [size, rows] of rowsBySize.entries()) if (rowsFrom(size) > maxRows) expect(rows).toBe(0);
        },
      ),
      { numRuns: 25 },
    );
  });

  test('no call has more rows than maxRows, and rows of several token batches share calls', async () => {
    const calls: number[] = [];
    const counting: ExpertBackend = {
      description: backend.description,
      load: (source) => backend.load(source),
      forward: (all) => {
        for (const { inputs } of all)
          calls.push(inputs.reduce((sum, { indices }) => sum + indices.length, 0));
        return backend.forward(all);
      },
      figures: () => null,
      close: () => {},
    };
    const executor = new Executor({
      backend: counting,
      runtime: nativeRuntime,
      worker: 'w7',
      hidden,
      maxRows: 10,
      weighsInput: false,
      metrics: executorMetrics(createRegistry('worker', 'test', nativeRuntime.usage)),
      onDeviceLost: () => {},
    });
    executor.add(0, 0, await loadExpert(0, 0));
    const one: Wanted = { layer: 0, segments: [[0, [1, 2, 3, 4]]] };
    const long: Wanted = { layer: 0, segments: [[0, Array.from({ length: 25 }, (_, i) => i)]] };
    const all = [one, one, one, one, long];
    const results = await Promise.all(all.map((wants) => executor.submit(tokenBatch(wants), 'r')));
    for (const [i, wants] of all.entries()) expectExact(wants, results[i]!);
    // The first two calls start at once with what is there; the others are full.
    expect(calls).toEqual([4, 4, 10, 10, 10, 3]);
  });

  test('a backend that asks for rows has more calls under way while they are small', async () => {
    let [under, most] = [0, 0];
    const withRows = (rows: number): ExpertBackend => ({
      description: { ...backend.description, calls: 1, rows },
      load: (source) => backend.load(source),
      forward: async (all) => {
        under += 1;
        most = Math.max(most, under);
        const times = await backend.forward(all);
        under -= 1;
        return times;
      },
      figures: () => null,
      close: () => {},
    });
    for (const [rows, expected] of [
      [0, 1],
      [9, 3],
    ] as const) {
      most = 0;
      const { executor } = await createExecutor(4, withRows(rows));
      const segments: Wanted['segments'] = [[0, Array.from({ length: 16 }, (_, i) => i)]];
      const one: Wanted = { layer: 0, segments };
      expectExact(one, await executor.submit(tokenBatch(one), 'r'));
      expect(most).toBe(expected);
    }
  });

  test('a lost device fails the token batches under way with its reason, and is told', async () => {
    const reason = Object.assign(new Error('cuda:0 is lost: an illegal address'), { code: 'DEVICE_LOST' });
    const calls: number[] = [];
    const lost: ExpertBackend = {
      description: backend.description,
      load: (source) => backend.load(source),
      forward: (all) => {
        for (const { inputs } of all) calls.push(inputs.length);
        return Promise.reject(reason);
      },
      figures: () => null,
      close: () => {},
    };
    const told: string[] = [];
    const executor = new Executor({
      backend: lost,
      runtime: nativeRuntime,
      worker: 'w7',
      hidden,
      maxRows: 1024,
      weighsInput: false,
      metrics: executorMetrics(createRegistry('worker', 'test', nativeRuntime.usage)),
      onDeviceLost: ({ message }) => told.push(message),
    });
    executor.add(0, 0, await loadExpert(0, 0));
    const one: Wanted = { layer: 0, segments: [[0, [1, 2]]] };
    const results = [0, 1, 2].map(() => executor.submit(tokenBatch(one), 'r'));
    for (const result of results) await expect(result).rejects.toMatchObject({ code: 'DEVICE_LOST' });
    expect(new Set(told)).toEqual(new Set([reason.message]));
    // No call is repeated: the device will not come back.
    expect(calls.length).toBeLessThanOrEqual(3);
  });

  test('the token batch that waits longest is served next, whatever its expert', async () => {
    const { executor } = await createExecutor();
    const order: string[] = [];
    const submit = (name: string, expert: number) =>
      executor.submit(tokenBatch({ layer: 0, segments: [[expert, [0]]] }), 'r').then(({ rows }) => {
        order.push(name);
        rows.release();
      });
    await Promise.all([
      submit('a', 0),
      submit('b', 1),
      submit('c', 2),
      submit('d', 3),
      submit('e', 2),
      submit('f', 0),
    ]);
    expect(order).toEqual(['a', 'b', 'c', 'e', 'd', 'f']);
  });

  test('partial: one weighted sum per row', async () => {
    const { executor } = await createExecutor();
    const wants: Wanted = {
      layer: 1,
      segments: [
        [0, [5, 6]],
        [2, [6]],
      ],
    };
    const exact = await executor.submit(tokenBatch(wants), 'r');
    const weights = Float32Array.of(0.25, 0.5, 0.125);
    const partial = await executor.submit(tokenBatch(wants, { combine: 'partial', weights }), 'r');
    expect(partial.rowCount).toBe(2);
    const value = (rows: Slab, row: number, column: number) => {
      const { buffer, byteOffset } = rows.view();
      const half = new DataView(buffer, byteOffset).getUint16((row * hidden + column) * 2, true);
      return new Float32Array(Uint32Array.of(half << 16).buffer)[0]!;
    };
    for (let column = 0; column < hidden; column += 1) {
      const sums = [
        0.25 * value(exact.rows, 0, column),
        0.5 * value(exact.rows, 1, column) + 0.125 * value(exact.rows, 2, column),
      ];
      for (const [row, sum] of sums.entries())
        expect(Math.abs(value(partial.rows, row, column) - sum)).toBeLessThanOrEqual(
          Math.abs(sum) / 256 + 1e-30,
        );
    }
    expect(executor.bytesHeld).toBe(0);
    exact.rows.release();
    partial.rows.release();
  });

  test('an expert that is not here is named, with worker and layer, and nothing is left behind', async () => {
    const { executor } = await createExecutor();
    executor.remove(1, 2);
    const batch = tokenBatch({
      layer: 1,
      segments: [
        [0, [1]],
        [2, [1]],
      ],
    });
    await expect(executor.submit(batch, 'r')).rejects.toMatchObject({
      code: 'EXPERT_NOT_HERE',
      message: 'worker w7 does not hold layer 1 expert 2',
      details: { worker: 'w7', layer: 1, expert: 2 },
    });
    expect(batch.rows.released).toBe(true);
    expect(executor.idle).toBe(true);
    await expect(executor.submit(tokenBatch({ layer: 9, segments: [[0, [1]]] }), 'r')).rejects.toMatchObject({
      code: 'EXPERT_NOT_HERE',
    });
  });

  test('an expert that is taken away still computes what was queued for it', async () => {
    const { executor } = await createExecutor(8);
    const wants: Wanted = { layer: 0, segments: [[1, Array.from({ length: 64 }, (_, i) => i)]] };
    const answer = executor.submit(tokenBatch(wants), 'r');
    executor.remove(0, 1);
    await expect(executor.submit(tokenBatch(wants), 'r')).rejects.toMatchObject({ code: 'EXPERT_NOT_HERE' });
    expectExact(wants, await answer);
  });

  test('cancelling drops a batch of one router, and no other', async () => {
    const { executor } = await createExecutor(4);
    const wants: Wanted = {
      layer: 0,
      segments: [
        [0, [1, 2, 3, 4, 5, 6]],
        [3, [1, 2]],
      ],
    };
    const submit = (batchId: string, router: string) =>
      executor.submit(tokenBatch(wants, { batchId }), router);
    const kept = [submit('x', 'r2'), submit('y', 'r1')];
    const dropped = [submit('x', 'r1'), submit('x', 'r1')];
    const rejections = dropped.map((answer) => expect(answer).rejects.toMatchObject({ code: 'CANCELLED' }));
    executor.cancel('x', 'r1');
    await Promise.all(rejections);
    for (const result of await Promise.all(kept)) expectExact(wants, result);
    expect(executor.bytesHeld).toBe(0);
    await executor.whenIdle();
  });

  test('closing gives up what is queued and what comes later, whether the backend is still there or not', async () => {
    const own = native.createCpuBackend({ threads: 1 });
    const { executor } = await createExecutor(1, own);
    const wants: Wanted = { layer: 0, segments: [[0, [1, 2]]] };
    const answers = Array.from({ length: 8 }, () => executor.submit(tokenBatch(wants), 'r'));
    for (const answer of answers) answer.catch(() => {});
    executor.close();
    own.close();
    answers.push(executor.submit(tokenBatch(wants), 'r'));
    for (const answer of answers) await expect(answer).rejects.toMatchObject({ code: 'DRAINING' });
    await executor.whenIdle();
    expect(executor.bytesHeld).toBe(0);
  });

  test('cancelling in the middle of a computation loses nobody else a row', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(wanted, { minLength: 2, maxLength: 10 }),
        fc.integer({ min: 0, max: 6 }),
        async (all, turns) => {
          const { executor } = await createExecutor(8);
          const answers = all.map((one, i) =>
            executor
              .submit(tokenBatch(one, { batchId: i % 2 === 0 ? 'kept' : 'dropped' }), 'r')
              .catch((error) => error),
          );
          for (let i = 0; i < turns; i += 1) await new Promise((resolve) => setImmediate(resolve));
          executor.cancel('dropped', 'r');
          for (const [i, result] of (await Promise.all(answers)).entries()) {
            if (result instanceof Error) {
              expect(i % 2).toBe(1);
              expect(result).toMatchObject({ code: 'CANCELLED' });
            } else expectExact(all[i]!, result);
          }
          await executor.whenIdle();
          expect(executor.bytesHeld).toBe(0);
        },
      ),
      { numRuns: 20 },
    );
  });

  test('rows whose deadline passed in the queue are not computed', async () => {
    const { executor, totals } = await createExecutor();
    const wants: Wanted = { layer: 0, segments: [[0, [1, 2, 3]]] };
    const late = executor.submit(tokenBatch(wants, { deadlineMs: performance.now() - 5 }), 'r');
    await expect(late).rejects.toMatchObject({
      code: 'DEADLINE_EXCEEDED',
      message: expect.stringMatching(/batch b passed \d+ ms ago/),
    });
    const timely = await executor.submit(tokenBatch(wants, { deadlineMs: performance.now() + 60_000 }), 'r');
    expectExact(wants, timely);
    expect(totals.rows).toBe(3);
  });

  test('a token batch that is cancelled while it is computed ends when nothing is held of it', async () => {
    const { executor } = await createExecutor();
    const rowCount = 4_000;
    const held = () => native.arenaStats().bytesInUse;
    const before = held();
    for (const combine of ['exact', 'partial'] as const) {
      for (let turns = 0; turns < 6; turns += 1) {
        const batch: TokenBatch = {
          meta: {
            ...{ batchId: 'b', chunk: 0, layer: 0, attempt: 0, epoch: 1, hidden },
            deadlineMs: Number.POSITIVE_INFINITY,
            combine,
            rowCount,
            segments: Uint32Array.of(0, rowCount, 1, rowCount),
            rowIndices: Uint32Array.from({ length: 2 * rowCount }, (_, i) => i % rowCount),
            weights: new Float32Array(2 * rowCount),
            traceparent: '',
          },
          rows: native.allocateSlab(rowCount * rowBytes),
        };
        const answer = executor.submit(batch, 'r');
        for (let turn = 0; turn < turns; turn += 1) await new Promise((resolve) => setImmediate(resolve));
        expect(executor.bytesHeld).toBeGreaterThan(0);
        executor.cancel('b', 'r');
        await expect(answer).rejects.toMatchObject({ code: 'CANCELLED' });
        expect(executor.bytesHeld).toBe(0);
        // Views of other tests may be collected meanwhile.
        expect(held()).toBeLessThanOrEqual(before);
      }
    }
  });

  test('a token batch that the backend refuses fails alone', async () => {
    const { executor } = await createExecutor();
    const wants: Wanted = { layer: 0, segments: [[0, [1, 2, 3]]] };
    const broken = tokenBatch(wants);
    broken.meta.rowIndices[1] = 1000;
    // The first two occupy the backend, so that the others share a call.
    const answers = [wants, wants].map((one) => executor.submit(tokenBatch(one), 'r'));
    const shared = [
      executor.submit(tokenBatch(wants), 'r'),
      executor.submit(broken, 'r'),
      executor.submit(tokenBatch(wants), 'r'),
    ];
    await expect(shared[1]).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    for (const answer of [...answers, shared[0]!, shared[2]!]) expectExact(wants, await answer);
    expect(executor.bytesHeld).toBe(0);
  });

  test('without memory for results a token batch fails by name, and the next ones are served', async () => {
    const { executor } = await createExecutor();
    const { bytesLimit, bytesInUse, bytesCached } = native.arenaStats();
    const rows = Array.from({ length: poolRows }, (_, i) => i);
    const wants: Wanted = {
      layer: 0,
      segments: [
        [0, rows],
        [1, rows],
      ],
    };
    const batch = tokenBatch(wants);
    const hog: Slab[] = [];
    for (let bytes = bytesLimit - bytesInUse - bytesCached; bytes >= 4096; ) {
      try {
        hog.push(native.allocateSlab(bytes));
      } catch {
        bytes = Math.floor(bytes / 2);
      }
    }
    await expect(executor.submit(batch, 'r')).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' });
    for (const slab of hog) slab.release();
    expectExact(wants, await executor.submit(tokenBatch(wants), 'r'));
    expect(executor.bytesHeld).toBe(0);
  });
});
