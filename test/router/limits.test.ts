import { describe, expect, test } from '@jest/globals';
import { SwitchyardClient } from '../../services/client/index.js';
import { until } from '../support/until.js';
import {
  type ForwardWishes,
  forward,
  type Outcome,
  overEachTransport,
  shape,
  startCluster,
  stateOf,
  tokens,
  untilIdle,
} from './cluster.js';

const mebibyte = 1024 * 1024;
const off = { feedback: 'OFF' } as const;
/** What clusters with default limits answer, by combine; no transport changes it. */
const wholes = new Map<string, Outcome>();

overEachTransport((transport) => {
  describe.each(['EXACT', 'PARTIAL'] as const)('a chunk of %s', (combine) => {
    test.each([
      ["a worker's messages", { messageBytesMax: 64 * 1024 }],
      ["a link's window", { linkWindowBytes: 64 * 1024 }],
      ["a worker's slabs", { slabBytes: mebibyte }],
    ])('that is larger than %s is cut into token batches, with the same bits', async (_, worker) => {
      const rows = await tokens(2_000);
      const options = { ...off, combine, chunkTokens: 2_000 };
      const whole =
        wholes.get(combine) ?? (await forward((await startCluster()).routers[0]!, rows, { options }));
      wholes.set(combine, whole);
      const { routers } = await startCluster({ worker });
      const cut = await forward(routers[0]!, rows, { options });
      expect(Buffer.compare(cut.rows, whole.rows)).toBe(0);
      expect(cut.summary.rowsSent).toBe(whole.summary.rowsSent);
      expect(whole.summary.messagesSent).toBe(2 * shape.layers);
      expect(cut.summary.messagesSent).toBeGreaterThanOrEqual(2 * 2 * shape.layers);
      await untilIdle(routers[0]!);
    });
  });

  test.each<[string, string, Record<string, unknown>]>([
    ["a worker's messages", 'messageBytesMax of worker worker-0', { messageBytesMax: 64 * 1024 }],
    ["a link's window", 'linkWindowBytes (or slabBytes', { linkWindowBytes: 64 * 1024 }],
    ["a worker's slabs", 'slabBytes, where that gives less) of worker worker-0', { slabBytes: mebibyte }],
  ])('a token that is larger than %s is refused by name, before a row moves', async (_, setting, worker) => {
    const wide = { hidden: 50_000, ffn: 32, experts: 4, topK: 4 };
    const { routers } = await startCluster({ workers: 1, worker, coordinator: wide });
    const client = await SwitchyardClient.connect(routers[0]!.address, { transport });
    try {
      await client.waitUntilReady(20_000);
      const call = await client.forward(new Uint8Array(50_000 * 2 * 8), { sequences: 1 });
      await expect(call.collect()).rejects.toMatchObject({
        code: 'TOO_LARGE',
        message: expect.stringContaining(setting),
        details: { node: 'worker worker-0' },
      });
    } finally {
      await client.close();
    }
    const { links } = (await stateOf(routers[0]!)) as unknown as { links: { messagesSent: number }[] };
    expect(links.map(({ messagesSent }) => messagesSent)).toEqual([0]);
  });

  test('answers with routing, and chunks with given routing, are messages of a size that every client takes', async () => {
    const count = 20_000;
    const { routers } = await startCluster({ router: { messageBytesMax: 100_000 } });
    const rows = await tokens(count);
    const gated = await forward(routers[0]!, rows, {
      messageTokens: 700,
      options: { ...off, returnRouting: true, chunkTokens: 8_192 },
    });
    for (const { rows, experts, weights } of transport === 'grpc' ? gated.chunks : []) {
      expect(rows.byteLength + experts.byteLength + weights.byteLength).toBeLessThanOrEqual(mebibyte);
    }
    // The SDK cuts its messages as this router takes them: rows and routing together.
    const client = await SwitchyardClient.connect(routers[0]!.address, { transport });
    try {
      const perToken = shape.layers * shape.topK;
      const all = {
        experts: new Uint32Array(new Uint8Array(gated.experts).buffer),
        weights: new Float32Array(new Uint8Array(gated.weights).buffer),
      };
      const call = await client.forward(rows, {
        given: (first, tokens) => ({
          experts: all.experts.slice(first * perToken, (first + tokens) * perToken),
          weights: all.weights.slice(first * perToken, (first + tokens) * perToken),
        }),
      });
      const { rows: outputs } = await call.collect();
      expect(Buffer.compare(outputs, gated.rows)).toBe(0);
    } finally {
      await client.close();
    }
  });

  test('a message of rows and routing above the limit is refused by name', async () => {
    const { routers } = await startCluster({ router: { messageBytesMax: 64 * 1024 } });
    const rows = await tokens(400);
    const given = { experts: Buffer.alloc(400 * 3 * 2 * 4), weights: Buffer.alloc(400 * 3 * 2 * 4) };
    const wishes: ForwardWishes = { options: { ...off, routing: 'GIVEN' }, given, messageTokens: 400 };
    await expect(forward(routers[0]!, rows, wishes)).rejects.toMatchObject({
      code: 'TOO_LARGE',
      details: { value: 400 * (128 + 48), allowed: 64 * 1024, setting: 'messageBytesMax' },
    });
  });

  test('many routers share what a worker has, and each completes its batches', async () => {
    const { routers } = await startCluster({ routers: 3, worker: { slabBytes: mebibyte } });
    const rows = await tokens(1_000);
    const states = await Promise.all(
      routers.map((router) =>
        until(
          () => stateOf(router),
          ({ ready }) => ready,
        ),
      ),
    );
    const windows = states.map(
      ({ links }) => (links as unknown as { creditBytes: number }[])[0]!.creditBytes,
    );
    expect(windows.reduce((sum, bytes) => sum + bytes, 0)).toBeLessThan(mebibyte);
    const outcomes = await Promise.all(
      routers.flatMap((router) => [1, 2, 3].map(() => forward(router, rows, { options: off }))),
    );
    for (const { rows } of outcomes) expect(Buffer.compare(rows, outcomes[0]!.rows)).toBe(0);
  });
});

test('a router for which a worker has no window left says so, by the setting, in its readiness', async () => {
  const { routers } = await startCluster({ routers: 4, workers: 1, worker: { slabBytes: mebibyte } });
  const states = await until(
    () => Promise.all(routers.map(stateOf)),
    (all) => all.filter(({ ready }) => ready).length === 3,
  );
  const { reason } = states.find(({ ready }) => !ready)!;
  expect(reason).toMatch(
    /no link to worker worker-0: router router-\d could have 61440 bytes .*slabBytes \(1048576\)/s,
  );
});
