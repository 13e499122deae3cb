import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { oneCopyEach } from '../../bench/one-copy.js';
import { native } from '../../native/index.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import { exchangeCodec } from '../../services/common/protocol.js';
import {
  checkBatch,
  checkToken,
  creditCost,
  groupLimits,
  metadataRoom,
} from '../../services/transport/limits.js';
import type { Link, LinkLimits, TokenBatchMeta } from '../../services/transport/link.js';
import { toWireMeta } from '../../services/transport/messages.js';
import { LinkWindows } from '../../services/transport/windows.js';
import { expertsOf, tableOf } from '../support/routing.js';
import { until } from '../support/until.js';
import { batchOf, costOf, dial, metaOf, never, startWorker } from './support.js';

/** Slab bytes that a worker takes for a token batch: what arrives, results, and sums for `partial`. */
function slabsOf(meta: TokenBatchMeta, metadataBytes: number): number {
  const before = native.arenaStats().bytesInUse;
  const rowBytes = meta.hidden * 2;
  const slabs = [
    native.allocateSlab(meta.rowCount * rowBytes, metadataBytes),
    native.allocateSlab(meta.rowIndices.length * rowBytes, 256),
    ...(meta.combine === 'partial' ? [native.allocateSlab(meta.rowCount * rowBytes, 256)] : []),
  ];
  const taken = native.arenaStats().bytesInUse - before;
  for (const slab of slabs) slab.release();
  return taken;
}

describe('the credit of a token batch', () => {
  const batch = fc.record({
    hidden: fc.integer({ min: 1, max: 3000 }),
    combine: fc.constantFrom('exact' as const, 'partial' as const),
    rowCount: fc.integer({ min: 1, max: 500 }),
    segments: fc.integer({ min: 1, max: 400 }),
    perSegment: fc.integer({ min: 1, max: 8 }),
    batchId: fc.string({ minLength: 1, maxLength: 128 }),
  });

  test('covers all slabs that the worker takes for it, and little more', () => {
    fc.assert(
      fc.property(batch, ({ segments, perSegment, rowCount, hidden, combine, batchId }) => {
        const entries = segments * perSegment;
        const meta = metaOf({
          hidden,
          combine,
          rowCount,
          batchId,
          entries,
          epoch: 2 ** 50,
          layer: 2 ** 32 - 1,
          segments: Uint32Array.from({ length: 2 * segments }, (_, i) => (i % 2 ? perSegment : 2 ** 31 + i)),
          weights: new Float32Array(entries),
        });
        const metadata = exchangeCodec.client.serialize({ tokens: { meta: toWireMeta(2 ** 50, meta, 0) } });
        expect(metadata.byteLength).toBeLessThanOrEqual(metadataRoom(meta));
        const taken = slabsOf(meta, metadata.byteLength);
        expect(taken).toBeLessThanOrEqual(creditCost(meta));
        const rowsHeld = (meta.combine === 'partial' ? 2 : 1) * rowCount + entries;
        expect(creditCost(meta)).toBeLessThanOrEqual(
          (9 / 8) * (rowsHeld * hidden * 2 + 16 * entries + 2048) + 4 * 4096,
        );
      }),
    );
  });

  test('counts what one row costs that a million experts want, and the sums of partial', () => {
    const million = metaOf({ rowCount: 1, entries: 1_000_000, hidden: 64 });
    expect(creditCost(million)).toBeGreaterThan(1_000_000 * 128);
    const form = { rowCount: 1000, entries: 8000, hidden: 4096 };
    const sums = creditCost(metaOf({ ...form, combine: 'partial' })) - creditCost(metaOf(form));
    expect(sums).toBeGreaterThan(1000 * 8192);
  });
});

describe('the groups of a chunk', () => {
  const worker = (limits: LinkLimits, name: string) => ({ worker: name, limits }) as Link;
  const bytes = fc.oneof(fc.integer({ min: 1, max: 2 ** 18 }), fc.integer({ min: 2 ** 18, max: 2 ** 30 }));
  const limits = fc.record({ rowBytesMax: bytes, resultBytesMax: bytes, creditBytes: bytes });

  test('fit on their links, whatever those allow, or are refused by name', async () => {
    const chunk = fc.record({
      links: fc.array(limits, { minLength: 1, maxLength: 3 }),
      hidden: fc.constantFrom(1, 16, 500, 4096, 30_000),
      combine: fc.constantFrom('exact' as const, 'partial' as const),
      topK: fc.integer({ min: 1, max: 6 }),
      rowCount: fc.constantFrom(1, 17, 150),
      seed: fc.nat(),
    });
    let refused = 0;
    await fc.assert(
      fc.asyncProperty(chunk, async ({ links: allowed, hidden, combine, topK, rowCount, seed }) => {
        const experts = 12;
        const links = allowed.map((one, i) => worker(one, `w${i}`));
        const workerOf = Uint32Array.from({ length: experts }, (_, i) => (i * 7 + seed) % links.length);
        const choices = links.map((_, w) => Math.min(topK, workerOf.filter((at) => at === w).length));
        let cuts: ReturnType<typeof groupLimits>;
        try {
          cuts = groupLimits(links, choices, { hidden, combine });
        } catch (error) {
          refused += 1;
          const { code, details } = error as SwitchyardError;
          expect(code).toBe('TOO_LARGE');
          expect(details.setting).toMatch(/^(messageBytesMax|linkWindowBytes|result_bytes_max)/);
          const at = links.findIndex(({ worker }) => details.node === `worker ${worker}`);
          if (at >= 0) expect(() => checkToken(links[at]!, choices[at]!, { hidden, combine })).toThrow();
          return;
        }
        const chosen = Uint32Array.from({ length: rowCount * topK }, (_, slot) => {
          const token = Math.floor(slot / topK);
          return (token * 5 + seed + (slot % topK)) % experts;
        });
        const routing = await tableOf(
          [experts],
          { experts: chosen, weights: new Float32Array(chosen.length) },
          topK,
        );
        const rows = native.allocateSlab(rowCount * hidden * 2);
        const routed = await native.routeRows({
          rows,
          rowCount,
          hidden,
          norm: null,
          gate: null,
          table: { routing, layer: 0 },
          copies: oneCopyEach(workerOf),
          pace: null,
          workers: links.length,
          limits: cuts,
          weighted: false,
        });
        const seen = new Set<number>();
        for (const { worker, rowCount, rowIndices, segments, tokens } of routed.groups) {
          const meta = metaOf({ hidden, combine, rowCount, rowIndices, segments });
          const { limits } = links[worker!]!;
          checkBatch('w', limits, meta);
          // Half of the window, so that the next one travels meanwhile, or what a single token needs.
          const token = creditCost(metaOf({ hidden, combine, rowCount: 1, entries: choices[worker!]! }));
          const cutWell = creditCost(meta) <= Math.max(token, limits.creditBytes / 2);
          if (!cutWell || metadataRoom(meta) > 1024 * 1024) throw new Error(`cost ${creditCost(meta)}`);
          const chosen = expertsOf(segments);
          for (const [i, row] of rowIndices.entries()) seen.add(tokens[row]! * experts + chosen[i]!);
        }
        expect(seen.size).toBe(rowCount * topK);
        for (const held of [routing, rows, routed]) held.release();
      }),
      { numRuns: 150 },
    );
    expect(refused).toBeGreaterThan(0);
  });
});

describe('the windows of a worker', () => {
  const options = { worker: 'w', slabBytes: 16 * 2 ** 20, linkWindowBytes: 4 * 2 ** 20 };

  test('never exceed its slabs together, become smaller, and end with an error that names the settings', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2 ** 20, max: 2 ** 40 }),
        fc.integer({ min: 2 ** 16, max: 2 ** 40 }),
        fc.array(fc.boolean(), { maxLength: 60 }),
        (slabBytes, linkWindowBytes, steps) => {
          const windows = new LinkWindows({ worker: 'w', slabBytes, linkWindowBytes });
          const open: number[] = [];
          for (const take of steps) {
            if (!take && open.length > 0) windows.giveBack(open.pop()!);
            else {
              try {
                open.push(windows.take('r'));
              } catch (error) {
                expect(error).toMatchObject({
                  code: 'RESOURCE_EXHAUSTED',
                  message: expect.stringContaining(`slabBytes (${slabBytes})`),
                  details: { setting: 'slabBytes', node: 'worker w' },
                });
                expect(open.length).toBeGreaterThan(0);
              }
            }
            expect(open.every((bytes) => bytes >= 2 ** 16 && bytes <= linkWindowBytes)).toBe(true);
            expect(open.reduce((sum, bytes) => sum + bytes, 0)).toBeLessThanOrEqual((slabBytes * 15) / 16);
          }
        },
      ),
    );
  });

  test('are given to links as far as slabs allow, and back when a link has ended', async () => {
    const { address } = await startWorker(options);
    const links = await Promise.all(['a', 'b', 'c', 'd'].map((router) => dial(address, { router })));
    expect(links.map(({ limits }) => limits.creditBytes / 2 ** 20).sort((a, b) => b - a)).toEqual([
      4, 4, 3.5, 1.75,
    ]);
    for (const link of links) link.close();
    await until(() => links.length === 4);
    const again = await dial(address, { router: 'e' });
    expect(again.limits.creditBytes).toBe(4 * 2 ** 20);
  });

  test('of a router that connects anew are its own again, once nothing of its old link is in memory', async () => {
    const held: (() => void)[] = [];
    const handler = ({ rows }: { rows: { release(): void } }) =>
      new Promise<never>((_, reject) => {
        held.push(() => {
          rows.release();
          reject(new Error('dropped'));
        });
      });
    const { address } = await startWorker({ handler, slabBytes: 2 ** 20, linkWindowBytes: 2 ** 20 });
    const old = await dial(address);
    const lost = old
      .exchange(batchOf({ rowCount: 100 }), never)
      .catch((error: SwitchyardError) => error.code);
    await until(() => held.length === 1);
    let opened = false;
    const anew = dial(address).then((link) => {
      opened = true;
      return link;
    });
    expect(await lost).toBe('LINK_LOST');
    // Another router finds half of what is left: the old window is not free yet.
    const other = await dial(address, { router: 'other' });
    expect(opened).toBe(false);
    held[0]!();
    const { limits } = await anew;
    expect(limits.creditBytes).toBeGreaterThan(costOf(100));
    expect(limits.creditBytes + other.limits.creditBytes).toBeLessThan(2 ** 20);
  });
});
