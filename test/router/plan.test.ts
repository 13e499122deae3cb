import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { ForwardHeader } from '../../services/common/generated/switchyard/v1/ForwardHeader.js';
import { chunkBytes, outputBytes, planBatch } from '../../services/router/plan.js';
import { header, limits, options, smallModel } from './support.js';

function refusal(fields: Partial<ForwardHeader>): SwitchyardError {
  try {
    planBatch(header(fields), limits);
  } catch (error) {
    return error as SwitchyardError;
  }
  throw new Error('the header was accepted');
}

describe('a header', () => {
  test('becomes a plan with the defaults of the protocol', () => {
    const plan = planBatch(header({ batchId: '' }), limits);
    expect(plan).toMatchObject({
      tokens: 32,
      hidden: 16,
      rowBytes: 32,
      topK: 2,
      norm: true,
      residual: true,
      combine: 'exact',
      feedback: false,
      given: false,
      weighsInput: false,
    });
    expect(plan.layers.map(({ layer }) => layer)).toEqual([0, 1, 2]);
    expect(plan.batchId).toMatch(/^[0-9a-f-]{36}$/);
  });

  test.each([
    ['sequences', { sequences: 0 }, '0'],
    ['length', { length: 0 }, '0'],
    ['sequences x length', { sequences: 2 ** 31, length: 2 ** 31 }, 'more than 9007199254740991'],
    ['hidden', { hidden: 17 }, '17'],
    ['dtype', { dtype: 'F32' }, '"F32"'],
    ['dtype', { dtype: 'DTYPE_UNSPECIFIED' }, '"DTYPE_UNSPECIFIED"'],
    ['last_layer', { firstLayer: 2, lastLayer: 1 }, '1'],
    ['batch_id', { batchId: 'a\nb' }, '"a\\nb"'],
    ['options.norm', { options: options({ norm: 7 as never }) }, '7'],
    ['options.combine', { options: options({ combine: 9 as never }) }, '9'],
    ['options.routing', { options: options({ routing: 5 as never }) }, '5'],
    ['options.chunk_tokens', { options: options({ chunkTokens: 1_000_000 }) }, '1000000'],
  ] as [string, Partial<ForwardHeader>, string][])('is refused for its %s', (field, fields, value) => {
    const error = refusal(fields);
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.details).toMatchObject({ field, value });
    expect(error.message).toContain(`${field} is ${value}; allowed: `);
  });

  test.each([
    ['first_layer', { firstLayer: 3 }, 3],
    ['last_layer', { lastLayer: 3 }, 3],
  ] as [string, Partial<ForwardHeader>, number][])(
    'with an unknown %s is refused',
    (field, fields, value) => {
      const error = refusal(fields);
      expect(error.code).toBe('UNKNOWN_LAYER');
      expect(error.details).toMatchObject({ field, value });
      expect(error.message).toContain('0-2');
    },
  );

  test('may cover layers without experts, but not only such layers', () => {
    const sparse = { ...smallModel, layers: [3, 4, 9].map((layer) => ({ ...smallModel.layers[0]!, layer })) };
    const of = (firstLayer: number, lastLayer: number) =>
      planBatch(header({ firstLayer, lastLayer }), { ...limits, model: sparse }).layers.map(
        ({ layer }) => layer,
      );
    expect(of(0, 3)).toEqual([3]);
    expect(of(4, 9)).toEqual([4, 9]);
    expect(() => of(5, 8)).toThrow('first_layer to last_layer is 5 to 8; allowed:');
    expect(() => of(5, 8)).toThrow('3-4, 9');
  });

  test('takes part in feedback only with gated routing', () => {
    const of = (fields: Parameters<typeof options>[0], feedback: boolean) =>
      planBatch(header({ options: options(fields) }), { ...limits, feedback }).feedback;
    expect(of({}, true)).toBe(true);
    expect(of({}, false)).toBe(false);
    expect(of({ feedback: 'OFF' }, true)).toBe(false);
    expect(of({ feedback: 'ON' }, false)).toBe(true);
    expect(of({ feedback: 'ON', routing: 'GIVEN' }, true)).toBe(false);
  });
});

describe('the chunk size', () => {
  test('of its own choice lets several chunks fit in the share of a batch of the budget', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 8_192 }),
        fc.integer({ min: 1, max: 16 }),
        fc.integer({ min: 8, max: 512 }),
        (hidden, topK, mebibytes) => {
          const model = { ...smallModel, hidden, topK };
          const chunkBytesMax = mebibytes * 1024 * 1024;
          const plan = planBatch(header({ hidden }), { ...limits, model, chunkBytesMax });
          expect(plan.chunkTokens).toBeGreaterThanOrEqual(1);
          expect(plan.chunkTokens).toBeLessThanOrEqual(8_192);
          expect(chunkBytes(plan, plan.chunkTokens)).toBeLessThanOrEqual(chunkBytesMax + 4_096 * (2 + topK));
          if (plan.chunkTokens > 256) {
            expect(4 * chunkBytes(plan, plan.chunkTokens)).toBeLessThanOrEqual(
              chunkBytesMax + 4 * 4_096 * (2 + topK),
            );
          }
        },
      ),
    );
  });

  test('is refused when a token does not fit at all', () => {
    expect(() => planBatch(header(), { ...limits, chunkBytesMax: 64 })).toThrow(
      'allowed: at most 64, by budgetBytes of router r',
    );
  });

  test('asked for beyond what the budget allows is refused by its name', () => {
    const asked = header({ options: options({ chunkTokens: 8_192 }) });
    expect(() => planBatch(asked, { ...limits, chunkBytesMax: 64 * 1024 })).toThrow(
      /options.chunk_tokens is 8192; allowed: at most \d+, by budgetBytes of router r/,
    );
  });

  test('of one token with its given routing must fit into a message', () => {
    const given = header({ options: options({ routing: 'GIVEN' }) });
    const of = (messageBytesMax: number) => planBatch(given, { ...limits, messageBytesMax });
    expect(of(32 + 48).given).toBe(true);
    expect(() => of(79)).toThrow(
      'bytes of one token is 80; allowed: at most 79, by messageBytesMax of router r',
    );
  });

  test('asked for is taken', () => {
    expect(planBatch(header({ options: options({ chunkTokens: 7 }) }), limits).chunkTokens).toBe(7);
    expect(planBatch(header(), { ...limits, chunkTokens: 300 }).chunkTokens).toBe(300);
  });

  test('of an answer needs less than of a chunk under way', () => {
    const plan = planBatch(header(), limits);
    expect(outputBytes(plan, 100)).toBeLessThan(chunkBytes(plan, 100));
  });
});
