import { afterEach, describe, expect, test } from '@jest/globals';
import type { ForwardOptions } from '../../services/client/client.js';
import { type Session, type SessionBatchOptions, SwitchyardClient } from '../../services/client/index.js';
import type { Running } from '../../services/common/lifecycle.js';
import type { TransportKind } from '../../services/transport/link.js';
import {
  overEachTransport,
  rowBytes,
  shape,
  startCluster,
  stateOf,
  tokens,
  untilIdle,
} from '../router/cluster.js';
import { slabBytesHeld } from '../router/support.js';
import { until } from '../support/until.js';

const clients: SwitchyardClient[] = [];

afterEach(() => {
  for (const client of clients.splice(0)) client.destroy();
});

async function connected(router: Running, transport: TransportKind): Promise<SwitchyardClient> {
  const client = await SwitchyardClient.connect(router.address, { transport });
  clients.push(client);
  await client.waitUntilReady(30_000);
  return client;
}

/** The outputs of a call of its own. */
async function alone(client: SwitchyardClient, rows: Uint8Array, options: SessionBatchOptions) {
  const { given, ...others } = options;
  // What comes as a stream is one.
  const stream = (async function* () {
    yield rows;
  })();
  const call = await client.forward(stream, {
    ...others,
    sequences: 1,
    length: rows.byteLength / rowBytes,
    ...(given && { given: () => given }),
  });
  const answers = Buffer.alloc(rows.byteLength);
  const perToken = (shape.topK * rows.byteLength) / rowBytes;
  const routing: { experts: Uint32Array; weights: Float32Array }[] = [];
  for await (const chunk of call) {
    answers.set(chunk.rows, chunk.first * rowBytes);
    if (chunk.routing !== null) routing.push(chunk.routing);
  }
  expect(routing.length).toBeLessThanOrEqual(1);
  return { rows: answers, routing: routing[0] ?? null, summary: await call.summary, perToken };
}

overEachTransport((transport) => {
  const off = { feedback: false };
  const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0;

  test('batches of all sizes at once come back as calls of their own give them, to the bit', async () => {
    const { routers } = await startCluster({ routers: 2 });
    const client = await connected(routers[0]!, transport);
    const session = client.session();
    const rows = await tokens(1024);
    const held = await slabBytesHeld();
    const sizes = [1, 2, 3, 7, 16, 64, 255, 256, 1000, 1024];
    const expected = await Promise.all(
      sizes.map((size) => alone(client, rows.subarray(0, size * rowBytes), off)),
    );
    for (let round = 0; round < 3; round += 1) {
      const results = await Promise.all(
        sizes.map((size) => session.forward(rows.subarray(0, size * rowBytes), off)),
      );
      for (const [index, { rows: answers, routing, summary }] of results.entries()) {
        expect(same(answers, expected[index]!.rows)).toBe(true);
        expect(routing).toBeNull();
        expect(summary).toMatchObject({
          tokens: sizes[index],
          layers: expected[index]!.summary.layers,
          assignments: sizes[index]! * shape.topK * shape.layers,
          routers: [{ tokens: sizes[index], transport }],
        });
      }
    }
    for (const router of routers) expect((await stateOf(router)) as object).toMatchObject({ sessions: 1 });
    await session.close();
    for (const router of routers) {
      await until(
        () => stateOf(router),
        (state) => (state as unknown as { sessions: number }).sessions === 0,
      );
      await untilIdle(router);
    }
    await until(slabBytesHeld, (now) => now <= held);
  });

  test('small batches of forward() share a session, which ends when none has come for a while', async () => {
    const { routers } = await startCluster();
    const router = routers[0]!;
    const client = await connected(router, transport);
    const rows = await tokens(96);
    const sessions = async () => ((await stateOf(router)) as unknown as { sessions: number }).sessions;
    const { routing, ...expected } = await alone(client, rows, { ...off, returnRouting: true });
    expect(await sessions()).toBe(0);
    const perToken = routing!.experts.length / 96;
    const slice = (first: number, count: number) => ({
      experts: routing!.experts.slice(first * perToken, (first + count) * perToken),
      weights: routing!.weights.slice(first * perToken, (first + count) * perToken),
    });
    const options = { ...off, returnRouting: true };
    const ways: ForwardOptions[] = [
      options,
      { ...options, sequences: 3 },
      { ...options, chunkTokens: 17 },
      { ...options, given: (first, count) => slice(first, count) },
    ];
    const calls = await Promise.all(ways.map((way) => client.forward(rows, way)));
    for (const call of calls) {
      const chosen = {
        experts: new Uint32Array(routing!.experts.length),
        weights: new Float32Array(routing!.weights.length),
      };
      const answers = Buffer.alloc(rows.byteLength);
      for await (const chunk of call) {
        answers.set(chunk.rows, chunk.first * rowBytes);
        chosen.experts.set(chunk.routing!.experts, chunk.first * perToken);
        chosen.weights.set(chunk.routing!.weights, chunk.first * perToken);
      }
      expect(same(answers, expected.rows)).toBe(true);
      expect(chosen).toEqual(routing);
      const { tokens, layers, routers } = await call.summary;
      expect({ tokens, layers }).toEqual({ tokens: 96, layers: expected.summary.layers });
      expect(routers).toMatchObject([{ tokens: 96, transport }]);
    }
    expect(await sessions()).toBe(1);
    await until(sessions, (count) => count === 0);
    expect(same((await (await client.forward(rows, off)).collect()).rows, expected.rows)).toBe(true);
    await client.close();
    await until(sessions, (count) => count === 0);
  });

  test('a small batch of forward() ends by its signal and its deadline while it waits', async () => {
    const { routers, workers } = await startCluster();
    const client = await connected(routers[0]!, transport);
    await Promise.all(workers.map((worker) => worker.stop('the test wants it')));
    await until(
      () => stateOf(routers[0]!),
      ({ ready }) => !ready,
    );
    const end = new AbortController();
    const cancelled = await client.forward(await tokens(1), { signal: end.signal });
    const late = await client.forward(await tokens(1), { deadlineMs: 50 });
    end.abort();
    await expect(cancelled.summary).rejects.toMatchObject({ code: 'CANCELLED' });
    await expect(late.summary).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
    await untilIdle(routers[0]!);
  });

  test('each batch has its own layers and options', async () => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!, transport);
    const session = client.session();
    const rows = await tokens(40);
    const returned = await session.forward(rows, { ...off, returnRouting: true });
    const cases: SessionBatchOptions[] = [
      { ...off, layers: { first: 1, last: 1 } },
      { ...off, layers: { first: 0, last: 1 }, norm: false },
      { ...off, residual: false },
      { ...off, combine: 'partial' },
      { ...off, chunkTokens: 7 },
      { ...off, chunkTokens: 16, returnRouting: true },
      { ...off, given: returned.routing!, returnRouting: true },
    ];
    const results = await Promise.all(cases.map((options) => session.forward(rows, options)));
    for (const [index, options] of cases.entries()) {
      const { chunkTokens: _, ...whole } = options;
      const expected = await alone(client, rows, whole);
      expect(same(results[index]!.rows, expected.rows)).toBe(true);
      expect(results[index]!.routing).toEqual(expected.routing);
    }
    expect(same(results.at(-1)!.rows, returned.rows)).toBe(true);
  });

  test('a batch that is refused, late, cancelled or wrong ends nothing but itself', async () => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!, transport);
    const session = client.session();
    const rows = await tokens(200);
    const good = await session.forward(rows, off);
    const nan = Buffer.from(rows);
    nan.writeUInt16LE(0x7fc0, 70 * rowBytes);
    const cancelled = new AbortController();
    const refused: [Uint8Array, SessionBatchOptions, object][] = [
      [rows, { layers: { first: 0, last: 9 } }, { code: 'UNKNOWN_LAYER', details: { field: 'last_layer' } }],
      [rows, { batchId: 'ä' }, { code: 'INVALID_ARGUMENT', details: { field: 'batchId' } }],
      [rows.subarray(3), {}, { code: 'INVALID_ARGUMENT', details: { field: 'rows' } }],
      [Buffer.alloc(1025 * rowBytes), {}, { code: 'INVALID_ARGUMENT', details: { field: 'rows' } }],
      [rows, { chunkTokens: 100_000 }, { code: 'INVALID_ARGUMENT', details: { field: 'chunkTokens' } }],
      [nan, { refuseNonFinite: true }, { code: 'NON_FINITE', details: { token: 70 } }],
      [rows, { signal: AbortSignal.abort() }, { code: 'CANCELLED' }],
      [rows, { signal: cancelled.signal }, { code: 'CANCELLED' }],
      [
        rows,
        { given: { experts: new Uint32Array(2), weights: new Float32Array(2) } },
        { code: 'INVALID_ARGUMENT' },
      ],
    ];
    const ends = refused.flatMap(([bytes, options, error]) => [
      expect(session.forward(bytes, { ...off, ...options })).rejects.toMatchObject(error),
      session.forward(rows, off).then((result) => expect(same(result.rows, good.rows)).toBe(true)),
    ]);
    cancelled.abort();
    await Promise.all(ends);
    const twice = [session.forward(rows, { batchId: 'one' }), session.forward(rows, { batchId: 'one' })];
    const outcomes = await Promise.allSettled(twice);
    expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
    expect((outcomes[1] as PromiseRejectedResult).reason).toMatchObject({ code: 'NAME_TAKEN' });
    await untilIdle(routers[0]!);
  });

  test('a batch that waits for workers ends by its deadline, its signal or the end of the session', async () => {
    const { routers, workers } = await startCluster();
    const client = await connected(routers[0]!, transport);
    const session = client.session();
    const rows = await tokens(8);
    await session.forward(rows);
    await Promise.all(workers.map((worker) => worker.stop('the test wants it')));
    await until(
      () => stateOf(routers[0]!),
      ({ ready }) => !ready,
    );
    const cancelled = new AbortController();
    const late = session.forward(rows, { deadlineMs: 200 });
    const stopped = session.forward(rows, { signal: cancelled.signal });
    const left = session.forward(rows);
    left.catch(() => {});
    await expect(late).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
    cancelled.abort();
    await expect(stopped).rejects.toMatchObject({ code: 'CANCELLED' });
    await until(
      () => stateOf(routers[0]!),
      ({ batches }) => batches === 1,
    );
    client.destroy();
    await expect(left).rejects.toMatchObject({ code: 'CANCELLED' });
    await untilIdle(routers[0]!);
  });

  test('a batch for which the session has no room ends by its deadline, its signal or the end of the session', async () => {
    const { routers, workers } = await startCluster();
    const client = await connected(routers[0]!, transport);
    const session = client.session();
    const rows = await tokens(2);
    await session.forward(rows);
    await Promise.all(workers.map((worker) => worker.stop('the test wants it')));
    await until(
      () => stateOf(routers[0]!),
      ({ ready }) => !ready,
    );
    const before = Array.from({ length: 64 }, () => session.forward(rows));
    await until(
      () => stateOf(routers[0]!),
      ({ batches }) => batches === 64,
    );
    const cancelled = new AbortController();
    const late = session.forward(rows, { deadlineMs: 50 });
    const stopped = session.forward(rows, { signal: cancelled.signal });
    const left = session.forward(rows);
    await expect(late).rejects.toMatchObject({
      code: 'DEADLINE_EXCEEDED',
      message: 'the deadline of 50 ms has passed before a router had the batch',
    });
    cancelled.abort();
    await expect(stopped).rejects.toMatchObject({ code: 'CANCELLED' });
    session.destroy();
    const ends = await Promise.allSettled([...before, left]);
    for (const end of ends) expect(end).toMatchObject({ reason: { code: 'CANCELLED' } });
    await untilIdle(routers[0]!);
  });

  test('more batches than a router takes at once wait for each other, and close() for all of them', async () => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!, transport);
    const session = client.session();
    const rows = await tokens(3);
    const { rows: expected } = await session.forward(rows, off);
    const results = Array.from({ length: 500 }, () => session.forward(rows, off));
    const all = Promise.all(results);
    // The client closes its sessions too, and both wait for the same batches.
    await Promise.all([session.close(), session.close(), client.close()]);
    expect((await all).every((result) => same(result.rows, expected))).toBe(true);
    await expect(session.forward(rows)).rejects.toMatchObject({ code: 'CANCELLED' });
    await client.close();
  });

  test('a router that stops finishes what it has, and the session goes on with another', async () => {
    const { routers } = await startCluster({ routers: 2 });
    const client = await connected(routers[0]!, transport);
    await client.waitUntilReady(30_000, 2);
    const session = client.session();
    const rows = await tokens(64);
    const { rows: expected } = await session.forward(rows, off);
    let stopping = false;
    let after = 0;
    const lanes = Array.from({ length: 4 }, async () => {
      while (after < 50) {
        const result = await session.forward(rows, off).catch((error) => error);
        // A batch that is on its way when the router begins to stop is refused, which the client cannot know before.
        if (result instanceof Error) expect(result).toMatchObject({ code: 'DRAINING' });
        else expect(same(result.rows, expected)).toBe(true);
        if (stopping) after += 1;
      }
    });
    await routers[1]!.stop('the test wants it');
    stopping = true;
    await Promise.all(lanes);
    const { summary } = await session.forward(rows, off);
    expect(summary.routers).toMatchObject([{ name: 'router-0', transport }]);
  });

  test('batches that are refused after their first chunk give their room back, however many', async () => {
    const { routers } = await startCluster();
    const session = (await connected(routers[0]!, transport)).session();
    const rows = Buffer.from(await tokens(1024));
    const wrong = Buffer.from(rows);
    wrong.writeUInt16LE(0x7fc0, 0);
    // More bytes than a session may have under way.
    for (let batch = 0; batch < 600; batch += 1) {
      await expect(
        session.forward(wrong, { ...off, refuseNonFinite: true, chunkTokens: 16 }),
      ).rejects.toMatchObject({ code: 'NON_FINITE' });
    }
    expect((await session.forward(rows, off)).summary.tokens).toBe(1024);
    await session.close();
    await untilIdle(routers[0]!);
  });

  test('batches of a session leave memory where it was', async () => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!, transport);
    const rows = await tokens(4);
    const send = async (session: Session, count: number) => {
      for (let sent = 0; sent < count; sent += 50)
        await Promise.all(Array.from({ length: 50 }, () => session.forward(rows)));
    };
    const held = await slabBytesHeld();
    for (let opened = 0; opened < 20; opened += 1) {
      const session = client.session();
      await send(session, 50);
      await session.close();
    }
    await untilIdle(routers[0]!);
    await until(slabBytesHeld, (now) => now <= held);
    await until(
      () => stateOf(routers[0]!),
      (state) => (state as unknown as { sessions: number }).sessions === 0,
    );
  });
});

describe('a session', () => {
  test('that is over, or of a client that is, takes nothing', async () => {
    const { routers } = await startCluster();
    const client = await connected(routers[0]!, 'grpc');
    expect(() => client.session({ transport: 'smoke' as never })).toThrow(
      /transport is "smoke"; allowed: auto, ucx, grpc/,
    );
    const session = client.session();
    session.destroy();
    await expect(session.forward(await tokens(1))).rejects.toMatchObject({ code: 'CANCELLED' });
    const other = client.session();
    await client.close();
    await expect(other.forward(await tokens(1))).rejects.toMatchObject({ code: 'CANCELLED' });
    expect(() => client.session()).toThrow(expect.objectContaining({ code: 'CANCELLED' }));
  });
});
