import { afterAll, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { SwitchyardError } from '../../services/common/errors.js';
import { Deferred } from '../../services/common/lifecycle.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import type { TokenBatch, TokenBatchResult } from '../../services/transport/link.js';
import { linkKey } from '../../services/transport/link-key.js';
import { nativeUcx } from '../../services/transport/ucx/port.js';
import { collectGarbage } from '../support/garbage.js';
import { until } from '../support/until.js';
import {
  batchOf,
  bytesOf,
  costOf,
  dial,
  messageBytesMax,
  metaOf,
  never,
  rowBytes,
  secret,
  startWorker,
  transports,
  useTransport,
} from './support.js';

/** A handler that keeps what it gets until the test answers, or its batch is cancelled and `drop` called. */
function holding() {
  const held: { batch: TokenBatch; answer: Deferred<TokenBatchResult> }[] = [];
  const drop = (batchId: string) => {
    for (const { batch, answer } of held) {
      if (batch.meta.batchId !== batchId) continue;
      batch.rows.release();
      answer.reject(new SwitchyardError('CANCELLED', 'dropped'));
    }
  };
  const handler = (batch: TokenBatch) => {
    const answer = new Deferred<TokenBatchResult>();
    held.push({ batch, answer });
    return answer.promise;
  };
  const echo = ({ batch, answer }: (typeof held)[number]) => {
    const { meta, rows } = batch;
    answer.resolve({ rows, rowCount: meta.rowCount, computeSeconds: 0, queueSeconds: 0 });
  };
  return { held, handler, echo, drop };
}

afterAll(async () => {
  // Views of slabs hold memory until they are collected: after that, nothing may be left.
  await until(() => {
    collectGarbage();
    return native.arenaStats().slabs === 0;
  });
});

describe.each(transports)('over %s', (transport) => {
  useTransport(transport);

  describe('an exchange', () => {
    test('brings back what the worker answers, with its timings', async () => {
      const seen: TokenBatch['meta'][] = [];
      const { address } = await startWorker({
        handler: async ({ meta, rows }, router) => {
          seen.push(meta);
          expect(router).toBe('r');
          return { rows, rowCount: meta.rowCount, computeSeconds: 0.25, queueSeconds: 0.5 };
        },
      });
      const link = await dial(address);
      const batch = batchOf({ rowCount: 5, layer: 3, chunk: 2, weights: Float32Array.of(1, 2, 3, 4, 5) }, 7);
      const expected = bytesOf(batch.rows);
      const result = await link.exchange(batch, never);
      expect(bytesOf(result.rows).equals(expected)).toBe(true);
      expect(result).toMatchObject({ rowCount: 5, computeSeconds: 0.25, queueSeconds: 0.5 });
      expect(seen).toEqual([batch.meta]);
      expect(batch.rows.released).toBe(true);
      expect(link.stats).toMatchObject({
        bytesSent: 5 * rowBytes,
        bytesReceived: 5 * rowBytes,
        messagesSent: 1,
        messagesReceived: 1,
        bytesOutstanding: 0,
        answersDiscarded: 0,
      });
      result.rows.release();
    });

    test('sends the rows that are selected, and gives up its hold on those among which they are', async () => {
      const { address } = await startWorker();
      const link = await dial(address);
      for (const count of [3, 2000]) {
        const source = batchOf({ rowCount: 3 * count }, 5).rows;
        const selected = Uint32Array.from({ length: count }, (_, i) => 3 * (count - 1 - i) + 1);
        const meta = metaOf({ rowCount: count });
        const result = await link.exchange({ meta, rows: source.share(), selected }, never);
        const expected = [...selected].map((row) =>
          bytesOf(source).subarray(row * rowBytes, (row + 1) * rowBytes),
        );
        expect(bytesOf(result.rows).equals(Buffer.concat(expected))).toBe(true);
        result.rows.release();
        source.release();
      }
    });

    test('may have more answers than rows, or fewer', async () => {
      const { address } = await startWorker({
        handler: async ({ meta, rows }) => {
          rows.release();
          const rowCount = meta.combine === 'exact' ? meta.rowIndices.length : meta.rowCount;
          return {
            rows: native.allocateSlab(rowCount * rowBytes),
            rowCount,
            computeSeconds: 0,
            queueSeconds: 0,
          };
        },
      });
      const link = await dial(address);
      const weights = new Float32Array(9);
      for (const [meta, rows] of [
        [{ rowCount: 3, entries: 9 }, 9],
        [{ rowCount: 9, entries: 2 }, 2],
        [{ rowCount: 3, entries: 9, combine: 'partial', weights }, 3],
      ] as const) {
        const result = await link.exchange(batchOf(meta), never);
        expect(result.rows.byteLength).toBe(rows * rowBytes);
        result.rows.release();
      }
    });

    test('of many at once finds its own answer, in whatever order they come', async () => {
      const { held, handler, echo } = holding();
      const { address } = await startWorker({ handler });
      const link = await dial(address);
      const answers = Array.from({ length: 30 }, (_, i) => {
        const batch = batchOf({ rowCount: 1 + (i % 5) }, i);
        const expected = bytesOf(batch.rows);
        return link.exchange(batch, never).then(({ rows }) => {
          expect(bytesOf(rows).equals(expected)).toBe(true);
          rows.release();
        });
      });
      await until(() => held.length === 30);
      held
        .sort((a, b) => Math.sin(a.batch.meta.rowCount * 7) - Math.sin(b.batch.meta.rowCount * 7))
        .forEach(echo);
      await Promise.all(answers);
    });

    test('fails alone, with the error of the worker', async () => {
      const { address } = await startWorker({
        handler: async ({ meta, rows }) => {
          if (meta.layer === 0) return { rows, rowCount: meta.rowCount, computeSeconds: 0, queueSeconds: 0 };
          rows.release();
          throw new SwitchyardError('EXPERT_NOT_HERE', 'layer 1 expert 4 is not here', {
            layer: 1,
            expert: 4,
          });
        },
      });
      const link = await dial(address);
      await expect(link.exchange(batchOf({ layer: 1 }), never)).rejects.toMatchObject({
        code: 'EXPERT_NOT_HERE',
        message: 'layer 1 expert 4 is not here',
        details: { worker: 'w', layer: 1, expert: 4 },
      });
      (await link.exchange(batchOf({ layer: 0 }), never)).rows.release();
      expect(link.stats.bytesOutstanding).toBe(0);
    });

    test('that the worker cannot read fails alone', async () => {
      const { address } = await startWorker();
      const link = await dial(address);
      const strange = batchOf({ rowIndices: Uint32Array.of(9), segments: Uint32Array.of(0, 1) });
      await expect(link.exchange(strange, never)).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        details: { field: 'row_indices', value: '9', allowed: '0 to 3', worker: 'w' },
      });
      (await link.exchange(batchOf(), never)).rows.release();
    });

    test('above the size of a message, or the credit of the link, is refused by name', async () => {
      const { address } = await startWorker({ linkWindowBytes: 128 * 1024 });
      const link = await dial(address);
      const long = batchOf({ rowCount: messageBytesMax / rowBytes + 1 });
      await expect(link.exchange(long, never)).rejects.toMatchObject({
        code: 'TOO_LARGE',
        details: { allowed: messageBytesMax, setting: 'messageBytesMax', node: 'worker w' },
      });
      // One row that many experts want costs what their results take.
      const wide = batchOf({ rowCount: 1, entries: 4000 });
      await expect(link.exchange(wide, never)).rejects.toMatchObject({
        code: 'TOO_LARGE',
        message: expect.stringContaining(
          'by linkWindowBytes (or slabBytes, where that gives less) of worker w',
        ),
        details: { allowed: 128 * 1024, node: 'worker w' },
      });
      expect(long.rows.released && wide.rows.released).toBe(true);
    });
  });

  describe('credits', () => {
    test('bound what a worker holds, whatever the router has to send', async () => {
      const { held, handler, echo } = holding();
      const { address } = await startWorker({ handler, linkWindowBytes: 3 * costOf(512) });
      const link = await dial(address);
      const order: number[] = [];
      const answers = Array.from({ length: 12 }, (_, chunk) =>
        link.exchange(batchOf({ rowCount: 512, chunk }), never).then(({ rows }) => {
          order.push(chunk);
          rows.release();
        }),
      );
      for (let done = 0; done < 12; done++) {
        await until(() => held.length === Math.min(12, done + 3));
        await new Promise((resolve) => setTimeout(resolve, 5));
        expect(held.length).toBe(Math.min(12, done + 3));
        expect(link.stats.bytesOutstanding).toBeLessThanOrEqual(link.stats.creditBytes);
        echo(held[done]!);
        await until(() => order.length === done + 1);
      }
      await Promise.all(answers);
      expect(order).toEqual([...order].sort((a, b) => a - b));
      expect(link.stats.bytesOutstanding).toBe(0);
    });
  });

  describe('a signal', () => {
    test('ends an exchange at once; its answer is discarded, and only then its credit is free', async () => {
      const { held, handler, echo } = holding();
      const { address } = await startWorker({ handler });
      const link = await dial(address);
      const abort = new AbortController();
      const exchange = link.exchange(batchOf({ rowCount: 2 }), abort.signal);
      await until(() => held.length === 1);
      abort.abort();
      await expect(exchange).rejects.toMatchObject({ code: 'CANCELLED' });
      expect(link.stats.bytesOutstanding).toBe(costOf(2));
      echo(held[0]!);
      await until(() => link.stats.answersDiscarded === 1);
      expect(link.stats.bytesOutstanding).toBe(0);
    });

    test('ends an exchange that waits for credit, with the deadline as its reason', async () => {
      const { held, handler, echo } = holding();
      const { address } = await startWorker({ handler, linkWindowBytes: costOf(2048) });
      const link = await dial(address);
      const first = link.exchange(batchOf({ rowCount: 2048 }), never);
      const waiting = batchOf({ rowCount: 8 });
      await expect(link.exchange(waiting, AbortSignal.timeout(20))).rejects.toMatchObject({
        code: 'DEADLINE_EXCEEDED',
      });
      expect(waiting.rows.released).toBe(true);
      await until(() => held.length === 1);
      echo(held[0]!);
      (await first).rows.release();
      expect(link.stats).toMatchObject({ bytesOutstanding: 0, messagesSent: 1 });
    });
  });

  describe('cancel', () => {
    test('ends the exchanges of the batch on both sides; their credit is free when the worker holds nothing of them', async () => {
      const { held, handler, echo } = holding();
      const cancelled: string[] = [];
      const onCancel = (batchId: string, router: string) => cancelled.push(`${batchId} of ${router}`);
      const { address } = await startWorker({ handler, onCancel });
      const link = await dial(address);
      const doomed = [0, 1, 2].map(() => link.exchange(batchOf({ batchId: 'doomed' }), never));
      const other = link.exchange(batchOf({ batchId: 'other' }), never);
      await until(() => held.length === 4);
      link.cancel('doomed');
      for (const exchange of doomed) await expect(exchange).rejects.toMatchObject({ code: 'CANCELLED' });
      await until(() => cancelled.length > 0);
      expect(link.stats.bytesOutstanding).toBe(4 * costOf(4));
      // What the worker computed in spite of it is not sent.
      held.forEach(echo);
      (await other).rows.release();
      await until(() => link.stats.bytesOutstanding === 0);
      (await Promise.all([link.exchange(batchOf({ batchId: 'next' }), never), echoNext()]))[0].rows.release();
      expect(cancelled).toEqual(['doomed of r']);
      await until(() => link.stats.bytesOutstanding === 0);
      expect(link.stats).toMatchObject({ answersDiscarded: 3, messagesReceived: 2 });

      async function echoNext() {
        await until(() => held.length === 5);
        echo(held[4]!);
      }
    });

    test('of a batch that the link does not know does nothing', async () => {
      const { address } = await startWorker();
      const link = await dial(address);
      link.cancel('nothing');
      (await link.exchange(batchOf(), never)).rows.release();
    });
  });

  describe('a link that ends', () => {
    test('by the router: outstanding exchanges end, the worker drops what it holds', async () => {
      const { held, handler, echo } = holding();
      const cancelled: string[] = [];
      const { address } = await startWorker({ handler, onCancel: (batchId) => cancelled.push(batchId) });
      const link = await dial(address);
      const exchanges = ['a', 'b', 'b'].map((batchId) => link.exchange(batchOf({ batchId }), never));
      await until(() => held.length === 3);
      link.close();
      for (const exchange of exchanges) {
        await expect(exchange).rejects.toMatchObject({ code: 'LINK_LOST', details: { worker: 'w' } });
      }
      expect((await link.closed).message).toContain('the router closed the link');
      const late = batchOf();
      await expect(link.exchange(late, never)).rejects.toMatchObject({ code: 'LINK_LOST' });
      expect(late.rows.released).toBe(true);
      await until(() => cancelled.length === 2);
      expect(cancelled.sort()).toEqual(['a', 'b']);
      held.forEach(echo);
      expect(link.stats.bytesOutstanding).toBe(0);
    });

    test('by a router that connects anew: the worker serves the new link only', async () => {
      const { held, handler, echo, drop } = holding();
      const { address } = await startWorker({ handler, onCancel: drop });
      const old = await dial(address);
      const lost = old.exchange(batchOf(), never);
      await until(() => held.length === 1);
      const link = await dial(address);
      await expect(lost).rejects.toMatchObject({ code: 'LINK_LOST' });
      expect((await old.closed).message).toContain('router r has connected anew');
      const exchange = link.exchange(batchOf(), never);
      await until(() => held.length === 2);
      echo(held[1]!);
      (await exchange).rows.release();
    });

    if (transport === 'ucx') {
      /** A link whose worker hears that the other end of the channel is gone; what it tells, and what it will do by its clock when told to. */
      const lose = async () => {
        const timers = new Set<() => void>();
        const after = (_: number, run: () => void) => {
          timers.add(run);
          const timer = { cancel: () => timers.delete(run), unref: () => timer };
          return timer;
        };
        const runtime = { ...nativeRuntime, clock: { ...nativeRuntime.clock, after } };
        const told: Record<string, unknown>[] = [];
        const log = { info: (line: never) => told.push(line), warn: (line: never) => told.push(line) };
        const lost = new Deferred<void>();
        const ucx = nativeUcx(false);
        const createPort: typeof ucx.createPort = (fabric, options) => {
          const port = ucx.createPort(fabric, options);
          const receive = port.receive.bind(port);
          return Object.assign(port, {
            receive: (...args: Parameters<typeof receive>) => Promise.race([receive(...args), lost.promise]),
          });
        };
        const { address } = await startWorker({
          log: log as never,
          ucx: { ...ucx, createPort },
          runtime: runtime as never,
        });
        const link = await dial(address);
        (await link.exchange(batchOf(), never)).rows.release();
        lost.reject(new SwitchyardError('LINK_LOST', 'the UCX peer is gone'));
        await until(() => timers.size > 0);
        return { link, told, events: () => told.map(({ event }) => event), timers };
      };

      test('by a router whose channel is gone a little before its stream: that is no failure', async () => {
        const { link, events, timers } = await lose();
        link.close();
        await until(() => events().includes('link-closed'));
        expect(events()).toEqual(['link-opened', 'link-closed']);
        expect(timers.size).toBe(0);
      });

      test('by the loss of its channel alone', async () => {
        const { link, told, events, timers } = await lose();
        for (const run of timers) run();
        expect((await link.closed).message).toMatch(/UCX/);
        expect(events()).toEqual(['link-opened', 'link-failed', 'link-closed']);
        expect(told[1]).toMatchObject({ code: 'LINK_LOST', reason: expect.stringMatching(/UCX/) });
      });
    }

    test('by the server: the reason says so', async () => {
      const server = await startWorker({ handler: holding().handler });
      const link = await dial(server.address);
      const exchange = link.exchange(batchOf(), never);
      const lost = expect(exchange).rejects.toMatchObject({ code: 'LINK_LOST', details: { worker: 'w' } });
      await server.close(0);
      await lost;
      expect((await link.closed).message).not.toBe('');
    });
  });

  describe('a link is refused', () => {
    test.each([
      ['for another model', { modelFingerprint: 'other' }, 'MODEL_MISMATCH', '"other"; worker w serves f'],
      ['for another worker', { worker: 'w2' }, 'UNAUTHENTICATED', 'gives to a router for worker w'],
      [
        'to a router with the key of another',
        { key: linkKey(secret, 'other') },
        'UNAUTHENTICATED',
        'no valid proof',
      ],
    ])('%s', async (_, options, code, message) => {
      const { address } = await startWorker();
      await expect(dial(address, options)).rejects.toMatchObject({
        code,
        message: expect.stringContaining(message),
      });
    });

    test('while the worker has no model', async () => {
      const { address } = await startWorker({ model: () => null });
      await expect(dial(address)).rejects.toMatchObject({
        code: 'NOT_READY',
        message: 'worker w has no model yet',
      });
    });

    test('where nobody listens', async () => {
      const server = await startWorker();
      await server.close(0);
      await expect(dial(server.address)).rejects.toMatchObject({ code: 'LINK_LOST' });
    });
  });
});
