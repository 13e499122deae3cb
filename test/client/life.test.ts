import { afterEach, describe, expect, jest, test } from '@jest/globals';
import { readMetrics } from '../../services/cli/node-metrics.js';
import {
  type ForwardOptions,
  type RowsReader,
  type RowsSink,
  SwitchyardClient,
} from '../../services/client/index.js';
import { Deferred, type Running } from '../../services/common/lifecycle.js';
import { overEachTransport, rowBytes, shape, startCluster, tokens, untilIdle } from '../router/cluster.js';

const { hidden } = shape;
const count = 100_000;
const clients: SwitchyardClient[] = [];

afterEach(() => {
  for (const client of clients.splice(0)) client.destroy();
});

async function connected(): Promise<{ client: SwitchyardClient; router: Running }> {
  // No batch ends because its client says nothing any more.
  const { routers } = await startCluster({ router: { clientStallMs: 3_600_000 } });
  const client = await SwitchyardClient.connect(routers[0]!.address);
  clients.push(client);
  await client.waitUntilReady(30_000);
  return { client, router: routers[0]! };
}

/** Rows of which only the first part can be read until `open` is called: a batch of them does not end before. */
async function gated(): Promise<{ input: RowsReader; open: () => void }> {
  const block = await tokens(100);
  const gate = new Deferred<void>();
  const read = async (first: number, rows: number) => {
    if (first > 0) await gate.promise;
    const bytes = Buffer.alloc(rows * rowBytes);
    for (let at = 0; at < bytes.length; at += block.length) block.copy(bytes, at);
    return bytes;
  };
  return { input: { tokens: count, hidden, read }, open: gate.resolve };
}

/** Whether so many batches have ended at the router, each of them because its client cancelled it. */
async function expectCancelled({ metricsUrl }: Running, batches: number): Promise<void> {
  const metrics = await readMetrics(metricsUrl);
  expect(metrics.get('switchyard_batches_total')).toBe(batches);
  expect(metrics.get('switchyard_batches_total{outcome="CANCELLED"}')).toBe(batches);
}

const cancelled = { code: 'CANCELLED' };

overEachTransport((transport) => {
  const options: ForwardOptions = { transport, feedback: false };

  describe('close', () => {
    test('lets batches under way end, refuses new ones, and then ends the connections', async () => {
      const { client, router } = await connected();
      const { input, open } = await gated();
      const whole = (await client.forward(input, options)).collect();
      let over = false;
      const closed = client.close().then(() => {
        over = true;
      });
      const refused = { code: 'CANCELLED', message: 'the client was closed' };
      await expect(client.forward(await tokens(1), options)).rejects.toMatchObject(refused);
      await expect(client.describeCluster()).rejects.toMatchObject(refused);
      await expect(client.waitUntilReady(60_000)).rejects.toMatchObject(refused);
      expect(over).toBe(false);
      open();
      expect((await whole).summary.tokens).toBe(count);
      await closed;
      await client.close();
      await untilIdle(router);
    });

    test('ends batches whose answers nobody takes, after a while, and says so; it keeps the process alive until then', async () => {
      const { client, router } = await connected();
      const warned = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
      try {
        const { input } = await gated();
        const calls = [await client.forward(await tokens(3), options), await client.forward(input, options)];
        const { setTimeout: real } = globalThis;
        const set = jest.spyOn(globalThis, 'setTimeout');
        set.mockImplementation(((run: () => void, ms: number) =>
          real(run, ms === 30_000 ? 1 : ms)) as typeof setTimeout);
        const closed = client.close();
        const timers = set.mock.results.map(({ value }) => value as NodeJS.Timeout);
        set.mockRestore();
        expect(timers.map((timer) => timer.hasRef())).toEqual([true]);
        await Promise.all([closed, client.close()]);
        const texts = calls.map(
          ({ batchId }) => `nobody has asked for answers of batch ${batchId} within 30000 ms of close()`,
        );
        for (const [index, call] of calls.entries())
          await expect(call.collect()).rejects.toMatchObject({
            code: 'CLIENT_STALLED',
            message: texts[index],
          });
        expect(warned.mock.calls.map(([text]) => text)).toEqual(texts);
        await untilIdle(router);
      } finally {
        warned.mockRestore();
      }
    });

    test('ends a batch whose loop reads no further, and those beside it that nobody takes', async () => {
      const { client, router } = await connected();
      const warned = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
      const { setTimeout: real } = globalThis;
      const set = jest.spyOn(globalThis, 'setTimeout');
      try {
        const begun = await client.forward(await tokens(2), options);
        const untaken = await client.forward(await tokens(3), options);
        await begun[Symbol.asyncIterator]().next();
        set.mockImplementation(((run: () => void, ms: number) =>
          real(run, ms === 30_000 ? 1 : ms)) as typeof setTimeout);
        await client.close();
        expect(warned.mock.calls).toHaveLength(2);
        for (const call of [begun, untaken])
          await expect(call.summary).rejects.toMatchObject({ code: 'CLIENT_STALLED' });
        await untilIdle(router);
      } finally {
        set.mockRestore();
        warned.mockRestore();
      }
    });

    test('waits for answers that somebody takes, and for those whose turn comes then', async () => {
      const { client } = await connected();
      const { input, open } = await gated();
      const calls = [await client.forward(input, options), await client.forward(await tokens(3), options)];
      const first = calls[0]!.collect();
      const { setTimeout: real } = globalThis;
      const set = jest.spyOn(globalThis, 'setTimeout');
      set.mockImplementation(((run: () => void, ms: number) =>
        real(run, ms === 30_000 ? 1 : ms)) as typeof setTimeout);
      const closed = client.close();
      set.mockRestore();
      await new Promise((resolve) => real(resolve, 50));
      open();
      await first;
      expect((await calls[1]!.collect()).summary.tokens).toBe(3);
      await closed;
    });

    test.each([null, { wrote: () => {} }, 7])(
      'does not wait for a batch whose sink was refused: %p',
      async (sink) => {
        const { client } = await connected();
        const { input } = await gated();
        for (const rows of [await tokens(3), input]) {
          const call = await client.forward(rows, options);
          const refused = {
            code: 'INVALID_ARGUMENT',
            message: expect.stringContaining('an object with write'),
          };
          await expect(call.into(sink as unknown as RowsSink)).rejects.toMatchObject(refused);
          await expect(call.summary).rejects.toMatchObject(refused);
        }
        await client.close();
      },
    );

    test.each<[string, (fail: () => never) => object]>([
      [
        'write',
        (fail) => ({
          get write() {
            return fail();
          },
        }),
      ],
      [
        'type',
        (fail) => ({
          get [Symbol.toStringTag]() {
            return fail();
          },
        }),
      ],
    ])('does not wait for a batch whose sink throws when its %s is read', async (_, make) => {
      const { client, router } = await connected();
      const mine = new Error('mine');
      const sink = make(() => {
        throw mine;
      });
      const call = await client.forward((await gated()).input, options);
      await expect(call.into(sink as RowsSink)).rejects.toBe(mine);
      await expect(call.summary).rejects.toBe(mine);
      await client.close();
      await untilIdle(router);
    });

    test('waits for a batch that a loop takes beside a sink that was refused', async () => {
      const { client } = await connected();
      const call = await client.forward(await tokens(3), options);
      const whole = call.collect();
      await expect(call.into(null as unknown as RowsSink)).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
      });
      expect((await whole).summary.tokens).toBe(3);
      await client.close();
    });

    test('is what `await using` does', async () => {
      const { client } = await connected();
      await client[Symbol.asyncDispose]();
      await expect(client.forward(await tokens(1))).rejects.toMatchObject(cancelled);
    });
  });

  describe('destroy', () => {
    test('ends batches under way at once, here and at the routers', async () => {
      const { client, router } = await connected();
      const { input } = await gated();
      const calls = await Promise.all([1, 2, 3].map(() => client.forward(input, options)));
      const taken = calls[0]!.collect();
      const loop = (async () => {
        for await (const _ of calls[1]!);
      })();
      client.destroy(new Error('the user left'));
      const text = expect.stringMatching(/^batch .* was cancelled by the client: the user left$/);
      for (const end of [taken, loop, ...calls.map(({ summary }) => summary)]) {
        await expect(end).rejects.toMatchObject({ code: 'CANCELLED', message: text });
      }
      client.destroy();
      await client.close();
      const refused = { code: 'CANCELLED', message: 'the client was destroyed' };
      await expect(client.forward(await tokens(1), options)).rejects.toMatchObject(refused);
      await untilIdle(router);
    });

    test('cuts a close short', async () => {
      const { client } = await connected();
      const { input } = await gated();
      const taken = (await client.forward(input, options)).collect();
      const closed = client.close();
      client.destroy();
      await expect(taken).rejects.toMatchObject(cancelled);
      await closed;
    });
  });

  describe('the summary of a batch', () => {
    test('comes without a consumer too: the answers are dropped', async () => {
      const { client, router } = await connected();
      const call = await client.forward(await tokens(5_000), options);
      const summary = call.summary;
      await expect(call.collect()).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringMatching(/is "a sink"; allowed: one, and its summary has taken the answers$/),
      });
      expect(await summary).toMatchObject({ tokens: 5_000, routers: [{ transport }] });
      expect(await call.summary).toBe(await summary);
      await untilIdle(router);
    });

    test('rejects as soon as the batch is cancelled, whoever takes the answers', async () => {
      const { client, router } = await connected();
      const { input } = await gated();
      const call = await client.forward(input, options);
      call.cancel();
      await expect(call.summary).rejects.toMatchObject(cancelled);
      const late = await client.forward(input, options);
      late.cancel();
      await expect(late.collect()).rejects.toMatchObject(cancelled);
      await expect(late.summary).rejects.toMatchObject(cancelled);
      const controller = new AbortController();
      const aborted = await client.forward(input, { ...options, signal: controller.signal });
      controller.abort();
      await aborted.ended;
      await expect(aborted.summary).rejects.toMatchObject(cancelled);
      await untilIdle(router);
      await expectCancelled(router, 3);
    });

    test('rejects when the deadline passes, though nobody reads', async () => {
      const { client, router } = await connected();
      const { input } = await gated();
      const call = await client.forward(input, { ...options, deadlineMs: 300 });
      await call.ended;
      await expect(call.summary).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
      await untilIdle(router);
    });

    test('rejects when the consumer leaves: early, before its first answer, or by an error of its sink', async () => {
      const { client, router } = await connected();
      const { input } = await gated();
      const early = await client.forward(input, { ...options, chunkTokens: 1_000 });
      for await (const _ of early) break;
      await expect(early.summary).rejects.toMatchObject(cancelled);
      const unread = await client.forward(input, options);
      await unread[Symbol.asyncIterator]().return!();
      await expect(unread.summary).rejects.toMatchObject(cancelled);
      const failing = await client.forward(input, { ...options, chunkTokens: 1_000 });
      const full = { message: 'the disk is full' };
      const write = () => Promise.reject(new Error('the disk is full'));
      await expect(failing.into({ write })).rejects.toMatchObject(full);
      await expect(failing.summary).rejects.toMatchObject(full);
      await untilIdle(router);
      await expectCancelled(router, 3);
    });

    test('is not harmed by a second consumer, which is refused', async () => {
      const { client } = await connected();
      const call = await client.forward(await tokens(5_000), options);
      const whole = call.collect();
      expect(() => call[Symbol.asyncIterator]()).toThrow(/is "a loop"; allowed: one, and a sink has taken/);
      expect((await whole).summary.tokens).toBe(5_000);
      call.cancel();
      expect((await call.summary).tokens).toBe(5_000);
    });

    test('stays what it was when the batch is cancelled after its end', async () => {
      const { client } = await connected();
      const call = await client.forward(await tokens(10), options);
      let taken = 0;
      for await (const chunk of call) taken += chunk.count;
      call.cancel();
      expect([taken, (await call.summary).tokens]).toEqual([10, 10]);
    });
  });
});
