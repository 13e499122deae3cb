import { afterEach, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { type ForwardOptions, type RowsReader, SwitchyardClient } from '../../services/client/index.js';
import type { Running } from '../../services/common/lifecycle.js';
import { Deferred, sleep } from '../../services/common/lifecycle.js';
import {
  overEachTransport,
  rowBytes,
  shape,
  startCluster,
  stateOf,
  tokens,
  transports,
  untilIdle,
} from '../router/cluster.js';
import { slabBytesHeld } from '../router/support.js';
import { until } from '../support/until.js';

const { hidden } = shape;
const clients: SwitchyardClient[] = [];

afterEach(() => {
  for (const client of clients.splice(0)) client.destroy();
});

async function connected(router: Running, options: Parameters<typeof SwitchyardClient.connect>[1] = {}) {
  const client = await SwitchyardClient.connect(router.address, options);
  clients.push(client);
  await client.waitUntilReady(30_000);
  return client;
}

/** A batch of `count` tokens, made of the same rows again and again; `onRead` sees every read. */
function repeated(block: Buffer, count: number, onRead: (rows: number) => unknown = () => {}): RowsReader {
  return {
    tokens: count,
    hidden,
    read: async (_, rows) => {
      await onRead(rows);
      const bytes = Buffer.alloc(rows * rowBytes);
      for (let at = 0; at < bytes.length; at += block.length) block.copy(bytes, at);
      return bytes;
    },
  };
}

/** A batch that does not end by itself: after some of its rows no more can be read. */
function endless(block: Buffer): RowsReader {
  const rows = repeated(block, 4_000_000);
  return {
    ...rows,
    read: (first, count) => (first > 500_000 ? new Promise(() => {}) : rows.read(first, count)),
  };
}

/** Everything that a router, its workers and the client held is given back but weights; they share a process here. */
async function expectReleased(router: Running, before: number): Promise<void> {
  await untilIdle(router);
  await until(slabBytesHeld, (held) => held <= before);
}

/** One batch's outputs, which every transport must give. */
let expected: Buffer | null = null;

overEachTransport((transport) => {
  const options: ForwardOptions = { transport, feedback: false };

  test('a batch comes back whole, to the bit, and says how it travelled', async () => {
    const { routers } = await startCluster({ routers: 2 });
    const client = await connected(routers[0]!);
    const rows = await tokens(5_000);
    const held = await slabBytesHeld();
    const call = await client.forward(rows, { ...options, sequences: 10 });
    const { rows: answers, summary } = await call.collect();
    expected ??= Buffer.from(answers);
    expect(expected.equals(answers)).toBe(true);
    expect(summary).toMatchObject({ tokens: 5_000, routers: [{ transport }, { transport }] });
    expect(
      summary.routers.every(({ lanes }) => (transport === 'ucx' ? lanes !== '' : lanes === 'http2')),
    ).toBe(true);
    async function* pieces() {
      for (let at = 0; at < rows.length; at += 70_001) yield rows.subarray(at, at + 70_001);
    }
    const streamed = await client.forward(pieces(), { ...options, sequences: 10, length: 500 });
    expect(expected.equals((await streamed.collect()).rows)).toBe(true);
    await expectReleased(routers[0]!, held);
    await expectReleased(routers[1]!, held);
  });

  test('routing that was returned can be given, and changes nothing', async () => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!);
    const rows = await tokens(3_000);
    const perToken = shape.layers * shape.topK;
    const experts = new Uint32Array(3_000 * perToken);
    const weights = new Float32Array(3_000 * perToken);
    const answers = Buffer.alloc(rows.length);
    for await (const chunk of await client.forward(rows, { ...options, returnRouting: true })) {
      experts.set(chunk.routing!.experts, chunk.first * perToken);
      weights.set(chunk.routing!.weights, chunk.first * perToken);
      answers.set(chunk.rows, chunk.first * rowBytes);
    }
    const given = (first: number, count: number) => ({
      experts: experts.subarray(first * perToken, (first + count) * perToken),
      weights: weights.subarray(first * perToken, (first + count) * perToken),
    });
    const again = await (await client.forward(rows, { ...options, given })).collect();
    expect(answers.equals(again.rows)).toBe(true);
    const short = (first: number, count: number) => given(first, count - 1);
    const refused = await client.forward(rows, { ...options, given: short });
    await expect(refused.collect()).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('chunk.experts at offset 0'),
    });
    await untilIdle(routers[0]!);
  });

  test('rows that a consumer keeps never change', async () => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!);
    const rows = await tokens(4_000);
    const call = await client.forward(rows, { ...options, chunkTokens: 100 });
    const kept: { first: number; rows: Uint8Array; copy: Buffer }[] = [];
    for await (const chunk of call)
      kept.push({ first: chunk.first, rows: chunk.rows, copy: Buffer.from(chunk.rows) });
    await (
      await client.forward(
        rows.map((byte) => byte ^ 1),
        options,
      )
    ).collect();
    expect(kept.every((chunk) => chunk.copy.equals(chunk.rows))).toBe(true);
  });

  test('a sink is lent the rows without a copy, and its failure ends the batch', async () => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!);
    const rows = await tokens(3_000);
    const held = await slabBytesHeld();
    const whole = await (await client.forward(rows, options)).collect();
    const lent: { kept: Uint8Array; copy: Buffer; first: number }[] = [];
    const call = await client.forward(rows, { ...options, chunkTokens: 100, returnRouting: true });
    await call.into({
      write: async (first, part, routing) => {
        expect(routing!.experts).toHaveLength((part.byteLength / rowBytes) * shape.layers * shape.topK);
        await sleep(1);
        lent.push({ kept: part, copy: Buffer.from(part), first });
      },
    });
    lent.sort((a, b) => a.first - b.first);
    expect(Buffer.concat(lent.map(({ copy }) => copy)).equals(whole.rows)).toBe(true);
    if (transport === 'ucx') expect(lent.every(({ kept }) => kept.byteLength === 0)).toBe(true);
    const failing = await client.forward(rows, { ...options, chunkTokens: 100 });
    const write = () => Promise.reject(new Error('the disk is full'));
    await expect(failing.into({ write })).rejects.toMatchObject({ message: 'the disk is full' });
    const stuck = new Deferred<void>();
    const late = await client.forward(rows, { ...options, chunkTokens: 100, deadlineMs: 500 });
    await expect(late.into({ write: () => stuck.promise })).rejects.toMatchObject({
      code: 'DEADLINE_EXCEEDED',
    });
    stuck.resolve();
    await expectReleased(routers[0]!, held);
  });

  test('a consumer that does not read holds back the router, and the router the input', async () => {
    const { routers } = await startCluster({ router: { budgetBytes: 16 * 1024 * 1024 } });
    const client = await connected(routers[0]!);
    const held = await slabBytesHeld();
    const total = 1_000_000;
    let read = 0;
    const input = repeated(await tokens(100), total, (count) => {
      read += count;
    });
    const call = await client.forward(input, options);
    const answers = call[Symbol.asyncIterator]();
    await answers.next();
    let before = -1;
    while (before !== read) {
      before = read;
      await sleep(300);
    }
    // 128 MB make the batch; windows, budget and gRPC's buffers hold a part of it.
    expect(read).toBeLessThan(total * 0.75);
    expect(native.arenaStats().bytesInUse - held).toBeLessThan(96 * 1024 * 1024);
    await answers.return?.();
    await expect(call.summary).rejects.toMatchObject({ code: 'CANCELLED' });
    await expectReleased(routers[0]!, held);
  });

  test.each<[string, string, (signal: AbortController) => ForwardOptions]>([
    ['the abort of its signal', 'CANCELLED', ({ signal }) => ({ signal })],
    ['its deadline', 'DEADLINE_EXCEEDED', () => ({ deadlineMs: 700 })],
  ])('%s ends a batch, and nothing stays behind', async (_, code, more) => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!);
    const held = await slabBytesHeld();
    const controller = new AbortController();
    const call = await client.forward(endless(await tokens(100)), { ...options, ...more(controller) });
    const outcome = (async () => {
      for await (const { first } of call) if (first >= 0) controller.abort();
    })();
    await expect(outcome).rejects.toMatchObject({ code });
    await expectReleased(routers[0]!, held);
  });

  test('an input that fails ends the batch with its error', async () => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!);
    const held = await slabBytesHeld();
    let reads = 0;
    const input = repeated(await tokens(100), 400_000, () => {
      reads += 1;
      if (reads === 3) throw new Error('the disk is gone');
    });
    const call = await client.forward(input, options);
    await expect(call.collect()).rejects.toMatchObject({ cause: { message: 'the disk is gone' } });
    await expectReleased(routers[0]!, held);
  });

  test('a router that stops ends what it cannot finish with its reason', async () => {
    const { routers } = await startCluster({ router: { drainMs: 200 } });
    const client = await connected(routers[0]!);
    const call = await client.forward(endless(await tokens(100)), options);
    const outcome = (async () => {
      const stopping: Promise<void>[] = [];
      for await (const _ of call) stopping.push(routers[0]!.stop('the test wants it'));
    })();
    await expect(outcome).rejects.toMatchObject({ code: 'DRAINING' });
  });
});

(transports.length === 1 ? describe.skip : describe)('where a router takes chunks over gRPC alone', () => {
  test('auto uses gRPC, and ucx is an error', async () => {
    const { routers } = await startCluster({ router: { transport: 'grpc' } });
    const rows = await tokens(100);
    const client = await connected(routers[0]!);
    const { summary } = await (await client.forward(rows, { feedback: false })).collect();
    expect(summary.routers).toMatchObject([{ transport: 'grpc', lanes: 'http2' }]);
    const strict = await connected(routers[0]!, { transport: 'ucx' });
    const call = await strict.forward(rows, { feedback: false });
    await expect(call.collect()).rejects.toMatchObject({
      code: 'LINK_LOST',
      message: expect.stringMatching(
        /^no way over UCX: router .* takes batches over gRPC alone: transport is grpc at /,
      ),
    });
    await untilIdle(routers[0]!);
  });

  test('and where no window is left', async () => {
    const { routers } = await startCluster({ router: { budgetBytes: 4 * 1024 * 1024 } });
    const client = await connected(routers[0]!);
    const block = await tokens(100);
    // Batches that wait for more input keep their windows.
    const held = new AbortController();
    const waiting = Array.from({ length: 24 }, () =>
      client.forward(
        repeated(block, 1_000_000, () => sleep(60_000, held.signal)),
        { feedback: false, signal: held.signal },
      ),
    );
    const calls = await Promise.all(waiting);
    const ends = calls.map((call) => call.collect().catch(() => null));
    await until(
      () => stateOf(routers[0]!),
      ({ batches }) => batches === 24,
    );
    const { summary } = await (await client.forward(block, { feedback: false })).collect();
    expect(summary.routers).toMatchObject([{ transport: 'grpc' }]);
    held.abort();
    await Promise.all(ends);
    await untilIdle(routers[0]!);
    // The first client's session stays as it is.
    const other = await connected(routers[0]!);
    const after = await (await other.forward(block, { feedback: false })).collect();
    expect(after.summary.routers).toMatchObject([{ transport: 'ucx' }]);
  });
});

test('a transport that there is not is refused by name', async () => {
  const { routers } = await startCluster();
  const transport = 'rdma' as never;
  const error = { code: 'INVALID_ARGUMENT', message: 'transport is "rdma"; allowed: auto, ucx, grpc' };
  await expect(SwitchyardClient.connect(routers[0]!.address, { transport })).rejects.toMatchObject(error);
  const client = await connected(routers[0]!);
  await expect(client.forward(await tokens(1), { transport })).rejects.toMatchObject(error);
});
