import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { locate, splitBatch } from '../../services/client/share.js';

const batches = fc.record({
  sequences: fc.integer({ min: 1, max: 300 }),
  length: fc.integer({ min: 1, max: 9000 }),
  routers: fc.integer({ min: 1, max: 9 }),
  streamed: fc.boolean(),
});

describe('splitting a batch over routers', () => {
  test('gives every token to one router, in whole sequences', () => {
    fc.assert(
      fc.property(batches, ({ sequences, length, routers, streamed }) => {
        const { shares, runs } = splitBatch(sequences, length, routers, streamed);
        let next = 0;
        for (const run of runs) {
          expect(run.first).toBe(next);
          expect(run.count % length).toBe(0);
          next += run.count;
        }
        expect(next).toBe(sequences * length);
        expect(shares.length).toBeLessThanOrEqual(Math.min(routers, sequences));
        for (const share of shares) {
          expect(share.tokens).toBe(share.sequences * length);
          expect(share.tokens).toBe(share.runs.reduce((total, run) => total + run.count, 0));
        }
      }),
    );
  });

  test('gives each router one run, and shares that differ by at most a sequence, if the input can be read anywhere', () => {
    fc.assert(
      fc.property(batches, ({ sequences, length, routers }) => {
        const { shares } = splitBatch(sequences, length, routers, false);
        const sizes = shares.map((share) => share.sequences);
        expect(shares).toHaveLength(Math.min(routers, sequences));
        expect(shares.every((share) => share.runs.length === 1)).toBe(true);
        expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
      }),
    );
  });

  test('finds the place of every part of an answer in the batch', () => {
    fc.assert(
      fc.property(
        batches,
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.integer({ min: 1, max: 20_000 }),
        (batch, at, wanted) => {
          const { shares } = splitBatch(batch.sequences, batch.length, batch.routers, batch.streamed);
          for (const share of shares) {
            const offset = Math.min(share.tokens - 1, Math.floor(at * share.tokens));
            const count = Math.min(wanted, share.tokens - offset);
            const parts = locate(share, offset, count);
            const tokens = parts.reduce((total, part) => total + part.count, 0);
            expect(tokens).toBe(count);
            let local = offset;
            for (const part of parts) {
              const run = share.runs.find(
                (each) => local >= each.offset && local < each.offset + each.count,
              )!;
              expect(part.first).toBe(run.first + local - run.offset);
              expect(part.first + part.count).toBeLessThanOrEqual(run.first + run.count);
              local += part.count;
            }
          }
        },
      ),
    );
  });
});
