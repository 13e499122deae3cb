import { describe, expect, test } from '@jest/globals';
import type { ClusterDescription } from '../../services/common/generated/switchyard/v1/ClusterDescription.js';
import type { ForwardHeaderInput } from '../../services/common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardRequestInput } from '../../services/common/generated/switchyard/v1/ForwardRequest.js';
import type { OperatorClient } from '../../services/common/generated/switchyard/v1/Operator.js';
import { connect } from '../../services/common/grpc-channel.js';
import type { Running } from '../../services/common/lifecycle.js';
import { sleep } from '../../services/common/lifecycle.js';
import { clients } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { until } from '../support/until.js';
import {
  addWorker,
  type Call,
  callOf,
  clientOf,
  forward,
  header,
  outcomeOf,
  overEachTransport,
  rowBytes,
  sendChunks,
  shape,
  startCluster,
  stateOf,
  tokens,
  untilIdle,
  writable,
} from './cluster.js';

const off = { options: { feedback: 'OFF' } } as const;

/** Sends messages and half-closes; the error that comes back. */
async function refusal(router: Running, messages: ForwardRequestInput[]) {
  const call = callOf(router);
  const outcome = outcomeOf(call, 0);
  outcome.catch(() => {});
  for (const message of messages) call.write(message);
  call.end();
  return await outcome.then(
    () => {
      throw new Error('the batch was accepted');
    },
    (error) => error,
  );
}

/** As an operator does it. */
function operate(
  { address }: Running,
  ask: (operator: OperatorClient, done: (error: unknown) => void) => void,
): Promise<void> {
  const operator = connect(clients.Operator, address, { token: null, messageBytesMax: 1024 * 1024 });
  return new Promise<void>((resolve, reject) => {
    ask(operator, (error) => (error ? reject(error) : resolve()));
  }).finally(() => operator.close());
}

const mark = (coordinator: Running, worker: string, what: 'DRAINED' | 'CORDONED') =>
  operate(coordinator, (operator, done) => operator.markWorker({ worker, mark: what }, done));

/** One copy of each expert, at the worker that `where` names. */
function goTo(coordinator: Running, workers: string[], where: (layer: number, expert: number) => string) {
  const layers = Array.from({ length: shape.layers }, (_, layer) => {
    const holders = Array.from({ length: shape.experts }, (_, expert) =>
      workers.indexOf(where(layer, expert)),
    );
    return { layer, copies: holders.map(() => 1), workers: holders };
  });
  return operate(coordinator, (operator, done) => operator.rebalance({ target: { workers, layers } }, done));
}

/** How many copies a worker has, whatever becomes of them. */
async function copiesAt({ metricsUrl }: Running, name: string): Promise<number> {
  const { experts } = (await (await fetch(`${metricsUrl}/state/experts`)).json()) as {
    experts: { copies: { worker: string }[] }[];
  };
  return experts.flatMap(({ copies }) => copies.filter(({ worker }) => worker === name)).length;
}

const untilCopiesAt = (coordinator: Running, name: string, wanted: number) =>
  until(
    () => copiesAt(coordinator, name),
    (copies) => copies === wanted,
  );

/** A call whose first chunk has been answered, so that it is well under way. */
async function underWay(
  router: Running,
  rows: Buffer,
  total: number,
  fields: ForwardHeaderInput = {},
): Promise<Call> {
  const call = callOf(router);
  call.write(header({ length: total, ...off, ...fields }));
  call.on('error', () => {});
  const answered = new Promise<void>((resolve, reject) => {
    call.once('data', () => resolve());
    call.once('error', reject);
  });
  await sendChunks(call, rows, 0, rows.byteLength / rowBytes, 1_000);
  await answered;
  return call;
}

const failureOf = (call: Call) =>
  new Promise<ReturnType<typeof fromServiceError>>((resolve) => {
    call.once('error', (error) => resolve(fromServiceError(error)));
    call.resume();
  });

overEachTransport((transport) => {
  describe('bad input', () => {
    test('is refused by name and value, and harms nobody', async () => {
      const { routers } = await startCluster({ router: { messageBytesMax: 64 * 1024 } });
      const router = routers[0]!;
      const rows = await tokens(1_000);
      const good = await forward(router, rows, off);
      const chunk = (offset: number, bytes: number) => ({ chunk: { offset, rows: rows.subarray(0, bytes) } });
      const tooMuch = (bytes: number) => [
        header({ length: 10_000 }),
        { chunk: { offset: 0, rows: Buffer.alloc(bytes) } },
      ];
      const cases: [ForwardRequestInput[], string, string][] = [
        [[header({ hidden: 65 })], 'INVALID_ARGUMENT', 'hidden is 65; allowed: 64'],
        [[header({ dtype: 'F16' })], 'INVALID_ARGUMENT', 'dtype is "F16"; allowed: BF16'],
        [[header({ firstLayer: 3 })], 'UNKNOWN_LAYER', 'first_layer is 3; allowed'],
        [[chunk(0, 128)], 'INVALID_ARGUMENT', 'first message is "chunk"; allowed: a header'],
        [[], 'INVALID_ARGUMENT', 'first message is "half-close"; allowed: a header'],
        [[header({ length: 4 }), chunk(1, 128)], 'INVALID_ARGUMENT', 'chunk.offset is 1; allowed: 0'],
        [
          [header({ length: 4 }), chunk(0, 256), chunk(1, 256)],
          'INVALID_ARGUMENT',
          'chunk.offset is 1; allowed: 2',
        ],
        [[header({ length: 4 }), chunk(0, 200)], 'INVALID_ARGUMENT', 'chunk.rows at offset 0 is "200 bytes"'],
        [[header({ length: 4 }), chunk(0, 256)], 'INVALID_ARGUMENT', 'tokens received is 2; allowed: the 4'],
        [[header({ length: 4 }), chunk(0, 640)], 'INVALID_ARGUMENT', 'allowed: at most the 4 tokens'],
        [
          [header({ length: 2 }), chunk(0, 256), chunk(2, 128)],
          'INVALID_ARGUMENT',
          'message after the last token',
        ],
        [
          [header({ length: 1_000 }), chunk(0, 100_096)],
          'TOO_LARGE',
          'bytes of the chunk at offset 0 is 100096; allowed: at most 65536, by messageBytesMax of router router-0',
        ],
        [
          ...(transport === 'grpc'
            ? ([
                tooMuch(1_280_000),
                'TOO_LARGE',
                'at most 65536, by messageBytesMax of router router-0',
              ] as const)
            : ([tooMuch(300_032), 'RESOURCE_EXHAUSTED', 'a chunk that costs 300032 bytes'] as const)),
        ],
      ];
      for (const [messages, code, text] of cases) {
        const error = await refusal(router, messages);
        expect([error.code, error.message]).toEqual([code, expect.stringContaining(text)]);
      }
      await untilIdle(router);
      const again = await forward(router, rows, off);
      expect(Buffer.compare(again.rows, good.rows)).toBe(0);
    });

    test('such as the id of a batch under way is refused; afterwards the id is free again', async () => {
      const { routers } = await startCluster();
      const rows = await tokens(10);
      const first = await underWay(routers[0]!, rows, 20, { batchId: 'same' });
      await expect(forward(routers[0]!, rows, { ...off, batchId: 'same' })).rejects.toMatchObject({
        code: 'NAME_TAKEN',
        details: { field: 'batch_id', value: 'same' },
      });
      const gone = failureOf(first);
      first.cancel();
      expect((await gone).code).toBe('CANCELLED');
      await untilIdle(routers[0]!);
      expect((await forward(routers[0]!, rows, { ...off, batchId: 'same' })).summary.batchId).toBe('same');
    });
  });

  describe('a client', () => {
    test('that waits for an answer before it sends more gets it', async () => {
      const { routers } = await startCluster();
      const rows = await tokens(30);
      const expected = await forward(routers[0]!, rows, off);
      const call = callOf(routers[0]!);
      call.write(header({ length: 30, ...off }));
      for (let first = 0; first < 30; first += 10) {
        const answer = new Promise<Buffer>((resolve) => {
          call.once('data', ({ chunk }) => resolve(chunk!.rows));
        });
        await sendChunks(call, rows, first, first + 10, 10);
        const part = expected.rows.subarray(first * rowBytes, (first + 10) * rowBytes);
        expect(Buffer.compare(await answer, part)).toBe(0);
      }
      call.end();
      const ended = new Promise((resolve) => call.once('end', resolve));
      call.resume();
      await ended;
    });

    test('that is gone in the middle of a batch leaves nothing behind', async () => {
      const { routers } = await startCluster();
      const rows = await tokens(2_000);
      for (let turn = 0; turn < 5; turn += 1) {
        const call = callOf(routers[0]!);
        call.on('error', () => {});
        call.write(header({ length: 10_000, ...off }));
        const sent = sendChunks(call, rows, 0, 2_000, 100);
        await sleep(5 * turn);
        call.cancel();
        await sent;
      }
      await untilIdle(routers[0]!);
      expect((await forward(routers[0]!, rows, off)).summary.tokens).toBe(2_000);
    });

    test('that stops reading is ended, and meanwhile takes nothing from others', async () => {
      const { routers } = await startCluster({
        router: { clientStallMs: 4_000, budgetBytes: 4 * 1024 * 1024 },
      });
      const router = routers[0]!;
      const rows = await tokens(4_000);
      const stalled = callOf(router);
      const count = 200_000;
      stalled.write(header({ length: count, ...off }));
      stalled.on('error', () => {});
      // It reads once: grpc-js lets everything come, unread, until it was asked for a first message.
      stalled.once('data', () => stalled.pause());
      let sent = 0;
      void (async () => {
        while (sent < count) {
          const chunk = { offset: sent, rows: rows.subarray(0, 500 * rowBytes) };
          sent += 500;
          if (stalled.write({ chunk })) continue;
          await writable(stalled);
        }
      })();
      // Back-pressure: the budget is spent, and what the client can send on is soon only what buffers take.
      await until(
        () => stateOf(router),
        ({ budget }) => budget.waiting > 0,
      );
      const other = await forward(router, rows, off);
      expect(other.summary.tokens).toBe(4_000);
      expect(sent).toBeLessThan(count / 2);
      await untilIdle(router);
      expect(await failureOf(stalled)).toMatchObject({ code: 'CLIENT_STALLED', details: { stallMs: 4_000 } });
    });

    test('that never half-closes is ended', async () => {
      const { routers } = await startCluster({ router: { clientStallMs: 3_000 } });
      const rows = await tokens(10);
      const call = await underWay(routers[0]!, rows, 10);
      expect(await failureOf(call)).toMatchObject({
        code: 'CLIENT_STALLED',
        message: expect.stringMatching(/missing: half-close, as all 10 tokens came$/),
      });
      await untilIdle(routers[0]!);
    });

    test('gets DEADLINE_EXCEEDED from the sooner of its two deadlines', async () => {
      const { routers } = await startCluster();
      for (const [callMs, headerMs] of [
        [60_000, 200],
        [200, 60_000],
      ] as const) {
        const started = performance.now();
        const call = callOf(routers[0]!, { deadline: Date.now() + callMs });
        call.write(header({ length: 20, deadlineMs: headerMs, ...off }));
        expect((await failureOf(call)).code).toBe('DEADLINE_EXCEEDED');
        expect(performance.now() - started).toBeLessThan(30_000);
      }
      await untilIdle(routers[0]!);
    });

    test('among 32 at once gets its own answer', async () => {
      const { routers } = await startCluster({ router: { budgetBytes: 8 * 1024 * 1024 } });
      const batches = await Promise.all(Array.from({ length: 32 }, (_, seed) => tokens(300 + seed, seed)));
      const alone = await forward(routers[0]!, batches[7]!, off);
      const outcomes = await Promise.all(batches.map((rows) => forward(routers[0]!, rows, off)));
      expect(Buffer.compare(outcomes[7]!.rows, alone.rows)).toBe(0);
      expect(outcomes.map(({ summary }) => summary.tokens)).toEqual(
        batches.map((rows) => rows.byteLength / rowBytes),
      );
      await untilIdle(routers[0]!);
    });
  });

  describe('a router with as many batches as it takes', () => {
    test('refuses the next one, until one of them has ended', async () => {
      const { routers } = await startCluster({ router: { batchesMax: 1 } });
      const rows = await tokens(10);
      const first = await underWay(routers[0]!, rows, 20);
      await expect(forward(routers[0]!, rows, off)).rejects.toMatchObject({
        code: 'RESOURCE_EXHAUSTED',
        details: { batches: 1, allowed: 1 },
      });
      first.cancel();
      await untilIdle(routers[0]!);
      expect((await forward(routers[0]!, rows, off)).summary.tokens).toBe(10);
    });
  });

  describe('a cluster', () => {
    test('without its workers makes batches wait, and then says what is missing', async () => {
      const { routers } = await startCluster({
        workers: 0,
        coordinator: { workers: 1 },
        router: { readyWaitMs: 300 },
      });
      await expect(forward(routers[0]!, await tokens(5), off)).rejects.toMatchObject({
        code: 'NOT_READY',
        message: expect.stringContaining('0 of the 1 expected workers have joined'),
      });
      expect(await stateOf(routers[0]!)).toMatchObject({ ready: false, batches: 0 });
    });

    test('that becomes ready computes the batches that waited for it', async () => {
      const cluster = await startCluster({ workers: 0, coordinator: { workers: 1 } });
      const router = cluster.routers[0]!;
      const waiting = forward(router, await tokens(5), off);
      await until(
        () => stateOf(router),
        ({ batches }) => batches === 1,
      );
      await addWorker(cluster, 'late');
      expect((await waiting).summary.tokens).toBe(5);
    });

    test('that a worker leaves goes on with its batches on the others, and with it when it is back', async () => {
      const cluster = await startCluster();
      const router = cluster.routers[0]!;
      const rows = await tokens(500);
      const expected = await forward(router, rows, off);
      const call = await underWay(router, rows.subarray(0, 100 * rowBytes), 500);
      let summed = 0;
      call.on('data', ({ summary }) => {
        summed += summary?.tokens ?? 0;
      });
      const ended = new Promise((resolve) => call.once('end', resolve));
      await cluster.workers[1]!.stop('it is to leave');
      await sendChunks(call, rows, 100, 500, 50);
      call.end();
      await ended;
      expect(summed).toBe(500);
      await untilIdle(router);
      expect(Buffer.compare((await forward(router, rows, off)).rows, expected.rows)).toBe(0);
      await addWorker(cluster, 'worker-1');
      expect(Buffer.compare((await forward(router, rows, off)).rows, expected.rows)).toBe(0);
    });

    test('that cannot reach a new worker goes on with the copies that it reaches, until it can', async () => {
      const cluster = await startCluster({ workers: 1 });
      const { coordinator } = cluster;
      const router = cluster.routers[0]!;
      const rows = await tokens(50);
      const expected = await forward(router, rows, off);
      const all = shape.layers * shape.experts;
      const apart = await addWorker(cluster, 'apart', { advertiseHost: '127.0.0.2' });
      await mark(coordinator, 'worker-0', 'DRAINED');
      await untilCopiesAt(coordinator, 'apart', all);
      for (let batch = 0; batch < 3; batch += 1) {
        expect(Buffer.compare((await forward(router, rows, off)).rows, expected.rows)).toBe(0);
        await sleep(300);
      }
      await untilCopiesAt(coordinator, 'worker-0', all);
      await apart.stop('it is to be reached');
      await addWorker(cluster, 'apart');
      await untilCopiesAt(coordinator, 'worker-0', 0);
      expect(Buffer.compare((await forward(router, rows, off)).rows, expected.rows)).toBe(0);
    });

    test('that cannot reach a new worker goes on with its copies of one expert, and to new copies of others', async () => {
      const cluster = await startCluster({ workers: 2, coordinator: { rebalanceSeconds: 0 } });
      const { coordinator, workers } = cluster;
      const router = cluster.routers[0]!;
      const rows = await tokens(50);
      const expected = await forward(router, rows, off);
      await addWorker(cluster, 'apart', { advertiseHost: '127.0.0.2' });
      await addWorker(cluster, 'spare');
      const before = (layer: number) => (layer < 2 ? 'worker-0' : 'worker-1');
      const names = ['worker-0', 'worker-1', 'apart', 'spare'];
      await goTo(coordinator, names, before);
      await untilCopiesAt(coordinator, 'worker-1', shape.experts);
      await untilCopiesAt(coordinator, 'worker-0', 2 * shape.experts);
      await goTo(coordinator, names, (layer, expert) => (layer + expert === 0 ? 'apart' : before(layer)));
      await untilCopiesAt(coordinator, 'apart', 1);
      for (const name of ['worker-0', 'apart']) await mark(coordinator, name, 'CORDONED');
      await workers[1]!.stop('its experts are to go to the spare one');
      await untilCopiesAt(coordinator, 'spare', shape.experts);
      expect(Buffer.compare((await forward(router, rows, off)).rows, expected.rows)).toBe(0);
    });

    test('whose coordinator is gone goes on with its batches', async () => {
      const cluster = await startCluster();
      const router = cluster.routers[0]!;
      const rows = await tokens(50);
      const expected = await forward(router, rows, off);
      await cluster.coordinator.stop('it is to be gone');
      const again = await forward(router, rows, off);
      expect(Buffer.compare(again.rows, expected.rows)).toBe(0);
    });
  });

  describe('a router that stops', () => {
    test('finishes what is under way and refuses what is new', async () => {
      const { routers } = await startCluster({ router: { drainMs: 30_000 } });
      const router = routers[0]!;
      const rows = await tokens(100);
      const call = await underWay(router, rows.subarray(0, 50 * rowBytes), 100);
      const stopping = router.stop('the test wants it');
      await expect(forward(router, rows, off)).rejects.toMatchObject({ code: 'DRAINING' });
      let summed = false;
      call.on('data', ({ summary }) => {
        summed ||= summary?.tokens === 100;
      });
      const ended = new Promise((resolve) => call.once('end', resolve));
      await sendChunks(call, rows, 50, 100, 50);
      call.end();
      await ended;
      expect(summed).toBe(true);
      await stopping;
      await router.stopped;
    });

    test('ends what takes longer than it may', async () => {
      const { routers } = await startCluster({ router: { drainMs: 200 } });
      const call = await underWay(routers[0]!, await tokens(10), 20);
      const failure = failureOf(call);
      await routers[0]!.stop('the test wants it');
      expect((await failure).code).toBe('DRAINING');
    });
  });

  describe('a router', () => {
    test('describes cluster and model, and shows its metrics', async () => {
      const { routers } = await startCluster();
      const router = routers[0]!;
      await forward(router, await tokens(100), off);
      const client = clientOf(router);
      const model = await new Promise<unknown>((resolve, reject) => {
        client.DescribeModel({}, (error, answer) => (error ? reject(error) : resolve(answer)));
      });
      expect(model).toMatchObject({ hidden: shape.hidden, routing: { topK: shape.topK } });
      const cluster = await until(
        () =>
          new Promise<ClusterDescription>((resolve, reject) => {
            client.DescribeCluster({}, (error, answer) => (error ? reject(error) : resolve(answer!)));
          }),
        ({ view }) => view!.ready,
      );
      expect(cluster).toMatchObject({ model: { hidden: shape.hidden } });
      const text = await (await fetch(`${router.metricsUrl}/metrics`)).text();
      for (const line of [
        /switchyard_batches_total{outcome="complete",.*} 1$/m,
        /switchyard_tokens_total{.*} 100$/m,
        /switchyard_routed_rows_total{layer="0",.*} \d+$/m,
        /switchyard_link_messages_total{worker="worker-0",direction="sent",.*} 3$/m,
        /switchyard_link_bytes_total{worker="worker-1",direction="returned",.*} \d+$/m,
        /switchyard_gate_seconds_count{.*} 3$/m,
        /switchyard_group_seconds_count{.*} 3$/m,
        /switchyard_combine_seconds_count{.*} 3$/m,
        /switchyard_router_balancedness{layer="2",.*} [01]/m,
        /switchyard_in_flight_bytes{.*} 0$/m,
        /switchyard_link_credit_bytes{worker="worker-0",.*} \d+$/m,
        /switchyard_retries_total{.*} 0$/m,
        /switchyard_dropped_rows_total{.*} 0$/m,
        /switchyard_event_loop_busy_seconds_total{.*} \d/m,
      ]) {
        expect(text).toMatch(line);
      }
    });
  });
});
