import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { SwitchyardError } from '../../services/common/errors.js';
import type { BatchMeta } from '../../services/common/generated/switchyard/v1/BatchMeta.js';
import { services } from '../../services/common/protocol.js';
import { creditCost } from '../../services/transport/limits.js';
import type { TokenBatchMeta } from '../../services/transport/link.js';
import {
  fromWireFailure,
  fromWireMeta,
  toWireFailure,
  toWireMeta,
} from '../../services/transport/messages.js';
import { hidden, messageBytesMax, metaOf, rowBytes } from './support.js';

const limits = { worker: 'w', hidden, messageBytesMax };
const { Exchange } = services.Experts;

/** On the clocks of the two sides, which have nothing to do with each other. */
const sentMs = 1_000;
const arrivedMs = 61_000;

/** Metadata as it arrives at the other side. */
function sent(exchange: number, meta: TokenBatchMeta): BatchMeta {
  const message = Exchange.requestSerialize({ tokens: { meta: toWireMeta(exchange, meta, sentMs) } });
  return Exchange.requestDeserialize(message).tokens!.meta!;
}

const validMeta = fc
  .record({
    batchId: fc.string({ minLength: 1, maxLength: 40 }),
    chunk: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
    layer: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
    attempt: fc.integer({ min: 0, max: 9 }),
    epoch: fc.maxSafeNat(),
    leftMs: fc.option(fc.nat({ max: 2 ** 40 })),
    combine: fc.constantFrom('exact' as const, 'partial' as const),
    rowCount: fc.integer({ min: 1, max: 40 }),
    counts: fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 8 }),
    seed: fc.nat(),
    weighted: fc.boolean(),
    traceparent: fc.constantFrom('', `00-${'0af7'.repeat(8)}-${'b7ad'.repeat(4)}-01`),
  })
  .map(({ counts, seed, weighted, leftMs, ...rest }): TokenBatchMeta => {
    const entries = counts.reduce((sum, count) => sum + count, 0);
    return {
      ...rest,
      deadlineMs: leftMs === null ? Number.POSITIVE_INFINITY : sentMs + leftMs,
      hidden,
      segments: Uint32Array.from(counts.flatMap((count, expert) => [expert * 3, count])),
      rowIndices: Uint32Array.from({ length: entries }, (_, i) => (seed + i * 7) % rest.rowCount),
      weights:
        weighted || rest.combine === 'partial'
          ? Float32Array.from({ length: entries }, (_, i) => i / 3)
          : null,
    };
  });

describe('metadata of a token batch', () => {
  test('arrives as it was sent', () => {
    fc.assert(
      fc.property(validMeta, (meta) => {
        const { deadlineMs, ...arrived } = fromWireMeta(
          sent(9, meta),
          meta.rowCount * rowBytes,
          limits,
          arrivedMs,
        );
        expect({ ...arrived, deadlineMs: 0 }).toEqual({ ...meta, deadlineMs: 0 });
        // By the time that is left, whatever the clocks say; a deadline that has passed is one still.
        const none = meta.deadlineMs === Number.POSITIVE_INFINITY;
        expect(deadlineMs === Number.POSITIVE_INFINITY).toBe(none);
        const leftMs = Math.max(1, meta.deadlineMs - sentMs);
        if (!none) expect(deadlineMs).toBe(arrivedMs + leftMs);
        expect(creditCost(arrived as TokenBatchMeta)).toBe(creditCost(meta));
      }),
    );
  });

  const segmentsOf = (...pairs: number[]) => Buffer.from(Uint32Array.from(pairs).buffer);
  const good = () => sent(1, metaOf({ rowCount: 4, weights: new Float32Array(4) }));
  test.each<[string, (meta: BatchMeta) => Partial<BatchMeta>, number, RegExp]>([
    ['no batch id', () => ({ batchId: '' }), 4, /^batch_id is ""; allowed: 1 to 256/],
    ['a batch id without end', () => ({ batchId: 'x'.repeat(257) }), 4, /^batch_id is "x{32}"/],
    ['another hidden size', () => ({ hidden: 4 }), 4, /^hidden is 4; allowed: 8/],
    ['more rows than announced', () => ({}), 5, /^meta.rows is 4; allowed: .* 80 bytes/],
    ['fewer rows than announced', () => ({}), 3, /^meta.rows is 4; allowed/],
    ['rows that are not whole', () => ({}), 4.5, /^meta.rows is 4; allowed/],
    ['no rows', () => ({ rows: 0 }), 0, /^meta.rows is 0; allowed/],
    [
      'rows above the limit',
      () => ({ rows: 4097 }),
      4097,
      /^row bytes of a token batch is 65552; allowed: at most 65536, by messageBytesMax of worker w/,
    ],
    ['an unknown combine mode', () => ({ combine: 7 as never }), 4, /^combine is 7; allowed: EXACT, PARTIAL/],
    ['no indices', () => ({ rowIndices: Buffer.alloc(0) }), 4, /^row_indices is "0 bytes"/],
    ['indices that are not whole', () => ({ rowIndices: Buffer.alloc(5) }), 4, /^row_indices is "5 bytes"/],
    [
      'an index of no row',
      () => ({ rowIndices: Buffer.from([4, 0, 0, 0]) }),
      4,
      /^row_indices is 4; allowed: 0 to 3/,
    ],
    [
      'segments of other rows',
      () => ({ segments: segmentsOf(0, 3) }),
      4,
      /^segments is "3 rows"; allowed: 4 rows/,
    ],
    ['no segments', () => ({ segments: Buffer.alloc(0) }), 4, /^segments is "0 rows"/],
    [
      'segments that are not whole',
      () => ({ segments: Buffer.alloc(12) }),
      4,
      /^segments is "12 bytes"; allowed: a multiple of 8/,
    ],
    [
      'an empty segment',
      ({ segments }) => ({ segments: Buffer.concat([segments, segmentsOf(1, 0)]) }),
      4,
      /^segments\[1\].count is 0/,
    ],
    ['too few weights', () => ({ weights: Buffer.alloc(8) }), 4, /^weights is "8 bytes"; allowed: 16/],
    [
      'no weights where they are needed',
      () => ({ combine: 'PARTIAL', weights: Buffer.alloc(0) }),
      4,
      /^weights is "0 bytes"/,
    ],
    [
      'an epoch that is no exact number',
      () => ({ epoch: 2 ** 60 }),
      4,
      /^epoch is more than 9007199254740991; allowed/,
    ],
  ])('with %s is refused', (_, change, rows, message) => {
    const meta = good();
    expect(() => fromWireMeta({ ...meta, ...change(meta) }, rows * rowBytes, limits, 0)).toThrow(message);
  });

  test('of any content is either read or refused with a typed error', () => {
    const small = fc.integer({ min: 0, max: 6 });
    const u32 = fc.oneof(small, fc.integer({ min: 0, max: 2 ** 32 - 1 }));
    const bytes = fc.oneof(
      fc.uint8Array({ maxLength: 40 }),
      small.map((n) => new Uint8Array(4 * n)),
    );
    const anything = fc.record({
      exchange: u32,
      batchId: fc.string(),
      chunk: u32,
      layer: u32,
      attempt: u32,
      epoch: fc.oneof(u32, fc.double({ noNaN: true, min: 0 })),
      hidden: fc.oneof(fc.constant(hidden), u32),
      rows: u32,
      remainingMs: u32,
      combine: fc.constantFrom('EXACT', 'PARTIAL', 9),
      segments: fc.array(u32, { maxLength: 8 }).map((pairs) => segmentsOf(...pairs)),
      rowIndices: bytes.map(Buffer.from),
      weights: bytes.map(Buffer.from),
    });
    fc.assert(
      fc.property(anything, fc.nat({ max: 6 * rowBytes }), (meta, length) => {
        try {
          const read = fromWireMeta(meta as never, length, limits, 0);
          expect(read.rowCount * rowBytes).toBe(length);
          expect(read.rowIndices.every((index) => index < read.rowCount)).toBe(true);
        } catch (error) {
          expect(error).toBeInstanceOf(SwitchyardError);
          expect(['INVALID_ARGUMENT', 'TOO_LARGE']).toContain((error as SwitchyardError).code);
        }
      }),
      { numRuns: 2000 },
    );
  });
});

describe('the failure of an exchange', () => {
  test('keeps code, message and details, and gains the name of the worker', () => {
    const error = new SwitchyardError('EXPERT_NOT_HERE', 'expert 3 is not here', {
      layer: 2,
      expert: 3,
      place: 'Zürich',
    });
    const message = Exchange.responseSerialize({ failure: toWireFailure(5, error) });
    const { failure } = Exchange.responseDeserialize(message);
    expect(failure!.exchange).toBe(5);
    expect(fromWireFailure(failure!, 'w1')).toMatchObject({
      code: 'EXPERT_NOT_HERE',
      message: 'expert 3 is not here',
      details: { worker: 'w1', layer: 2, expert: 3, place: 'Zürich' },
    });
  });

  test('of an unknown code is INTERNAL, whatever its details are', () => {
    const failure = { exchange: 1, code: 'NO_SUCH_CODE', message: 'odd', details: '[1' };
    expect(fromWireFailure(failure, 'w1')).toMatchObject({ code: 'INTERNAL', details: { worker: 'w1' } });
  });
});
