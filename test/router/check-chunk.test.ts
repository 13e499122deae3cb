import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { native, type RoutingTable } from '../../native/index.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { Chunk } from '../../services/common/generated/switchyard/v1/Chunk.js';
import type { ForwardRequest } from '../../services/common/generated/switchyard/v1/ForwardRequest.js';
import { type ClientMessage, checkChunk } from '../../services/router/check-chunk.js';
import { createRoutingTable, readRouting, writeRouting } from '../../services/router/routing-table.js';
import { arrived, hashedPlan, isolatingPlan, options, plan } from './support.js';

const gated = plan();
const given = plan({ options: options({ routing: 'GIVEN' }) });
const limit = { bytesMax: 16 * gated.rowBytes, node: 'router r' };

function request(fields: Partial<Chunk>): ClientMessage {
  const empty = Buffer.alloc(0);
  const chunk = { offset: 0, rows: empty, experts: empty, weights: empty, tokenIds: empty, ...fields };
  return arrived({ kind: 'chunk', chunk });
}

const rows = (tokens: number) => Buffer.alloc(tokens * gated.rowBytes);

function refusal(message: ClientMessage, offset = 0, of = gated): SwitchyardError {
  try {
    checkChunk(message, offset, of, limit);
  } catch (error) {
    return error as SwitchyardError;
  }
  throw new Error('the message was accepted');
}

/** Valid routing of `tokens` tokens at an odd address, as it may lie in a message. */
function routing(tokens: number, change: (experts: Uint32Array, weights: Float32Array) => void = () => {}) {
  const experts = new Uint32Array(tokens * 6).map((_, index) => (index * 5) % 6);
  const weights = new Float32Array(tokens * 6).fill(0.5);
  change(experts, weights);
  const unaligned = (array: Uint32Array | Float32Array) => {
    const bytes = Buffer.alloc(array.byteLength + 1);
    bytes.set(new Uint8Array(array.buffer), 1);
    return bytes.subarray(1);
  };
  return { experts: unaligned(experts), weights: unaligned(weights) };
}

describe('a chunk message', () => {
  test('with whole tokens at the next offset is accepted', () => {
    const checked = checkChunk(request({ offset: 5, rows: rows(3) }), 5, gated, limit);
    expect(checked).toMatchObject({ offset: 5, tokens: 3, given: null });
  });

  test.each([
    ['a gap', request({ offset: 6, rows: rows(1) }), 'chunk.offset is 6; allowed: 5 '],
    [
      'an offset that came rounded',
      request({ offset: Number(2n ** 64n - 1n), rows: rows(1) }),
      'chunk.offset is more than 9007199254740991; allowed: 5 ',
    ],
    ['an overlap', request({ offset: 4, rows: rows(1) }), 'chunk.offset is 4; allowed: 5 '],
    [
      'no rows',
      request({ offset: 5 }),
      'chunk.rows at offset 5 is "0 bytes"; allowed: whole tokens of 32 bytes',
    ],
    ['half a token', request({ offset: 5, rows: Buffer.alloc(48) }), 'chunk.rows at offset 5 is "48 bytes"'],
    [
      'a second header',
      arrived({ kind: 'header', header: null } as ForwardRequest),
      'message after the header is "header"',
    ],
    ['nothing', arrived({} as ForwardRequest), 'message after the header is "empty"; allowed: a chunk'],
    [
      'routing unasked',
      request({ offset: 5, rows: rows(1), experts: Buffer.alloc(8) }),
      'chunk.experts at offset 5',
    ],
    [
      'unasked weights',
      request({ offset: 5, rows: rows(1), weights: Buffer.alloc(8) }),
      'chunk.weights at offset 5',
    ],
  ])('with %s is refused', (_, message, text) => {
    const error = refusal(message, 5);
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toContain(text);
  });

  test('that goes beyond the announced tokens is refused', () => {
    const error = refusal(request({ offset: 30, rows: rows(3) }), 30);
    expect(error.message).toContain('up to token 33');
    expect(error.message).toContain('allowed: at most the 32 tokens');
  });

  test('larger than the limit is refused', () => {
    expect(refusal(request({ rows: rows(17) }))).toMatchObject({
      code: 'TOO_LARGE',
      message: 'bytes of the chunk at offset 0 is 544; allowed: at most 512, by messageBytesMax of router r',
      details: { value: 544, allowed: 512, setting: 'messageBytesMax', node: 'router r' },
    });
  });
});

const hashed = hashedPlan();
const ids = (...values: number[]) => Buffer.from(Uint32Array.from(values).buffer);

describe('ids of tokens', () => {
  test('are read from any address', () => {
    const tokenIds = Buffer.concat([Buffer.alloc(1), ids(7, 999)]).subarray(1);
    const checked = checkChunk(request({ rows: rows(2), tokenIds }), 0, hashed, limit);
    expect(checked).toMatchObject({ given: null, tokenIds: Uint32Array.of(7, 999) });
  });

  test.each([
    [
      'that are missing',
      {},
      hashed,
      'chunk.token_ids at offset 4 is "0 bytes"; allowed: 8 bytes: 2 tokens x 4, as layer 2 chooses experts by them, or options.routing GIVEN',
    ],
    ['of fewer tokens', { tokenIds: ids(1) }, hashed, 'chunk.token_ids at offset 4 is "4 bytes"; allowed: 8'],
    [
      'that the vocabulary does not have',
      { tokenIds: ids(0, 1000) },
      hashed,
      'chunk.token_ids of token 5 is 1000; allowed: 0 to 999',
    ],
    [
      'that no layer wants',
      { tokenIds: ids(0, 1) },
      hashedPlan({ lastLayer: 1 }),
      'chunk.token_ids at offset 4 is "8 bytes"; allowed: none, as no layer of the batch chooses experts by them',
    ],
    [
      'beside routing',
      { ...routing(2), tokenIds: ids(0, 1) },
      hashedPlan({ options: options({ routing: 'GIVEN' }) }),
      'chunk.token_ids at offset 4 is "8 bytes"; allowed: none, as options.routing is GIVEN',
    ],
  ])('%s are refused', (_, fields, of, text) => {
    const error = refusal(request({ offset: 4, rows: rows(2), ...fields }), 4, of);
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toContain(text);
  });

  describe('by which some are isolated', () => {
    const isolating = isolatingPlan();
    const check = (fields: Partial<Chunk>, before: boolean | null) =>
      checkChunk(request({ rows: rows(2), ...fields }), 0, isolating, limit, before).tokenIds;

    test('may be any, or be left out of a whole batch', () => {
      const tokenIds = ids(8, 2 ** 32 - 1);
      for (const before of [null, true])
        expect(check({ tokenIds }, before)).toEqual(Uint32Array.of(8, 2 ** 32 - 1));
      for (const before of [null, false]) expect(check({}, before)).toBeNull();
    });

    test.each([
      ['of fewer tokens', { tokenIds: ids(8) }, null, '"4 bytes"; allowed: none, or 8 bytes: 2 tokens x 4'],
      [
        'that are missing',
        {},
        true,
        '"0 bytes"; allowed: 8 bytes: 2 tokens x 4, as the chunks before have them',
      ],
      ['of one chunk alone', { tokenIds: ids(8, 9) }, false, 'allowed: none, as the chunks before have none'],
    ])('%s are refused', (_, fields, before, text) => {
      expect(() => check(fields, before)).toThrow(text);
    });
  });

  test('count in the size of a message', () => {
    const bytesMax = 2 * hashed.rowBytes + 7;
    const message = request({ rows: rows(2), tokenIds: ids(0, 1) });
    expect(() => checkChunk(message, 0, hashed, { ...limit, bytesMax })).toThrow(
      /is 72; allowed: at most 71/,
    );
  });
});

/** Takes a message's routing, as its chunk does. */
async function take(fields: Partial<Chunk>, offset = 0): Promise<RoutingTable> {
  const { given: bytes, tokens } = checkChunk(
    request({ offset, rows: rows(2), ...fields }),
    offset,
    given,
    limit,
  );
  const table = createRoutingTable(native, given, tokens);
  try {
    await writeRouting(native, table, 0, bytes!, offset, given);
    return table;
  } catch (error) {
    table.release();
    throw error;
  }
}

describe('given routing', () => {
  test('is read from any address, in parts', async () => {
    const table = await take(routing(2));
    const { experts, weights } = await readRouting(native, table, 1, 1, given);
    table.release();
    expect([...new Uint32Array(new Uint8Array(experts).buffer)]).toEqual([0, 5, 4, 3, 2, 1]);
    expect([...new Float32Array(new Uint8Array(weights).buffer)]).toEqual(new Array(6).fill(0.5));
  });

  test.each([
    [
      'of another size',
      { experts: Buffer.alloc(20) },
      'chunk.experts at offset 0 is "20 bytes"; allowed: 48 bytes',
    ],
    [
      'that is missing',
      { experts: Buffer.alloc(0) },
      'allowed: 48 bytes: 2 tokens x 3 layers x 2 experts x 4',
    ],
  ])('%s is refused', (_, fields, text) => {
    const error = refusal(request({ rows: rows(2), ...routing(2), ...fields }), 0, given);
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toContain(text);
  });

  test.each([
    [
      'with an expert out of range',
      routing(2, (experts) => {
        experts[9] = 6;
      }),
      'chunk.experts of token 1, layer 1, choice 1 is 6; allowed: 0 to 5',
    ],
    [
      'with a weight that is no number',
      routing(2, (_, weights) => {
        weights[6] = Number.NaN;
      }),
      'chunk.weights of token 1, layer 0, choice 0 is NaN; allowed: finite numbers',
    ],
    [
      'with an infinite weight',
      routing(2, (_, weights) => {
        weights[11] = Number.NEGATIVE_INFINITY;
      }),
      'chunk.weights of token 1, layer 2, choice 1 is -Infinity',
    ],
  ])('%s is refused, naming it', async (_, fields, text) => {
    await expect(take(fields)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(text),
    });
  });

  test('names the token by its place in the batch', async () => {
    const wrong = routing(2, (experts) => {
      experts[9] = 6;
    });
    await expect(take(wrong, 30)).rejects.toMatchObject({
      message: 'chunk.experts of token 31, layer 1, choice 1 is 6; allowed: 0 to 5',
      details: { field: 'chunk.experts of token 31, layer 1, choice 1', allowed: '0 to 5' },
    });
  });

  test('of random ids is accepted exactly if all are in range', async () => {
    const ids = fc.array(fc.integer({ min: 0, max: 7 }), { minLength: 12, maxLength: 12 });
    await fc.assert(
      fc.asyncProperty(ids, async (experts) => {
        const valid = experts.every((id) => id < 6);
        const taken = take(routing(2, (array) => array.set(experts)));
        if (valid) (await taken).release();
        else await expect(taken).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
      }),
    );
  });
});
