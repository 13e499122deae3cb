import { afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { readMetrics } from '../../services/cli/node-metrics.js';
import type { ForwardHeaderInput } from '../../services/common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardOptionsInput } from '../../services/common/generated/switchyard/v1/ForwardOptions.js';
import type { ForwardRequestInput } from '../../services/common/generated/switchyard/v1/ForwardRequest.js';
import { packFloat32, packUint32 } from '../../services/common/packed.js';
import type { TransportKind } from '../../services/transport/link.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { chunk, header, rawForward } from '../support/raw-forward.js';
import { testRows } from '../support/rows.js';

/** The preset `tiny`: layers 0 and 1, 8 experts each, 2 of them for each token. */
const hidden = 256;
const rowBytes = hidden * 2;
const choices = 2 * 2;
const tokens = 32;
const messageBytesMax = 1024 * 1024;
const input = Buffer.from(testRows(tokens, hidden).buffer);

/** `count` good rows from token `first` on. */
const rows = (first: number, count: number) => input.subarray(first * rowBytes, (first + count) * rowBytes);

const head = (fields: ForwardHeaderInput = {}, options: ForwardOptionsInput = {}) =>
  header({
    sequences: 2,
    length: tokens / 2,
    hidden,
    dtype: 'BF16',
    options: { feedback: 'OFF', ...options },
    ...fields,
  });

const good: ForwardRequestInput[] = [head(), chunk({ offset: 0, rows: input })];

let cluster: TestCluster;
let expected: Buffer;

/** How the chunks travel. */
let transport: TransportKind = 'grpc';

async function answer(messages: readonly ForwardRequestInput[]) {
  const outcome = await rawForward(cluster.address, messages, transport);
  if (outcome.error) throw outcome.error;
  return { rows: outcome.rows, summary: outcome.summary! };
}

beforeAll(async () => {
  cluster = await startCluster({ workers: 2, coordinator: { messageBytesMax } });
  expected = (await answer(good)).rows;
  expect(expected.byteLength).toBe(tokens * rowBytes);
});

const transports: readonly TransportKind[] = native.ucx === null ? ['grpc'] : ['grpc', 'ucx'];

/** Whatever was sent, the cluster answers as before, to the bit. */
afterEach(async () => {
  expect((await answer(good)).rows.equals(expected)).toBe(true);
});

type Refusal = [what: string, messages: ForwardRequestInput[], code: string, said: string[]];

async function expectRefused(messages: readonly ForwardRequestInput[], code: string, said: string[]) {
  const { error } = await rawForward(cluster.address, messages, transport);
  expect(error).toMatchObject({ code });
  for (const part of said) expect(error?.message).toContain(part);
}

describe.each(transports)('over %s', (over) => {
  beforeAll(() => {
    transport = over;
  });

  describe('a header is refused by field, value and what is allowed:', () => {
    const all = chunk({ offset: 0, rows: input });
    const wrong = (fields: ForwardHeaderInput, options: ForwardOptionsInput = {}) => [
      head(fields, options),
      all,
    ];
    test.each<Refusal>([
      ['hidden size', wrong({ hidden: 128 }), 'INVALID_ARGUMENT', ['hidden is 128', 'allowed: 256']],
      ['F32', wrong({ dtype: 'F32' }), 'INVALID_ARGUMENT', ['dtype is "F32"', 'allowed: BF16']],
      [
        'no dtype',
        wrong({ dtype: 0 }),
        'INVALID_ARGUMENT',
        ['dtype is "DTYPE_UNSPECIFIED"', 'allowed: BF16'],
      ],
      ['no sequences', wrong({ sequences: 0 }), 'INVALID_ARGUMENT', ['sequences is 0', 'at least 1']],
      ['no length', wrong({ length: 0 }), 'INVALID_ARGUMENT', ['length is 0', 'at least 1']],
      [
        'more tokens than any memory',
        wrong({ sequences: 2 ** 32 - 1, length: 2 ** 32 - 1 }),
        'INVALID_ARGUMENT',
        ['sequences x length', 'at most 4294967296'],
      ],
      ['an unknown first layer', wrong({ firstLayer: 2 }), 'UNKNOWN_LAYER', ['first_layer is 2', '0-1']],
      ['an unknown last layer', wrong({ lastLayer: 9 }), 'UNKNOWN_LAYER', ['last_layer is 9', '0-1']],
      [
        'layers that end before they begin',
        wrong({ firstLayer: 1, lastLayer: 0 }),
        'INVALID_ARGUMENT',
        ['last_layer is 0', 'at least first_layer (1)'],
      ],
      [
        'chunks beyond any budget',
        wrong({}, { chunkTokens: 1 << 30 }),
        'INVALID_ARGUMENT',
        ['options.chunk_tokens is 1073741824', '0 (the router'],
      ],
      [
        'a mode that the protocol does not name',
        wrong({}, { combine: 7 as never }),
        'INVALID_ARGUMENT',
        ['options.combine is 7', 'EXACT, PARTIAL'],
      ],
      [
        'a batch id that would break a log',
        wrong({ batchId: 'a\nb' }),
        'INVALID_ARGUMENT',
        ['batch_id is "a\\nb"', 'printable ASCII'],
      ],
    ])('%s', async (_what, messages, code, said) => {
      await expectRefused(messages, code, said);
    });
  });

  describe('a stream of messages is refused:', () => {
    const part = (offset: number, first: number, count: number) =>
      chunk({ offset, rows: rows(first, count) });
    const invalid = 'INVALID_ARGUMENT';
    test.each<Refusal>([
      ['a chunk before the header', [part(0, 0, 4)], invalid, ['first message is "chunk"', 'a header']],
      ['nothing at all', [], invalid, ['first message is "half-close"', 'a header']],
      ['a second header', [head(), head()], invalid, ['message after the header is "header"', 'a chunk']],
      ['a gap', [head(), part(0, 0, 8), part(16, 16, 8)], invalid, ['chunk.offset is 16', 'allowed: 8 ']],
      ['an overlap', [head(), part(0, 0, 8), part(4, 4, 8)], invalid, ['chunk.offset is 4', 'allowed: 8 ']],
      ['a start that is not 0', [head(), part(8, 8, 8)], invalid, ['chunk.offset is 8', 'allowed: 0 ']],
      [
        'chunks in the wrong order',
        [head(), part(16, 16, 16), part(0, 0, 16)],
        invalid,
        ['chunk.offset is 16', 'allowed: 0 '],
      ],
      [
        'part of a row',
        [head(), chunk({ offset: 0, rows: input.subarray(0, 700) })],
        invalid,
        ['chunk.rows at offset 0 is "700 bytes"', 'whole tokens of 512 bytes'],
      ],
      ['no rows', [head(), chunk({ offset: 0 })], invalid, ['chunk.rows at offset 0 is "0 bytes"']],
      [
        'fewer tokens than announced',
        [head(), part(0, 0, 31)],
        invalid,
        ['tokens received is 31', 'the 32 tokens that the header announced'],
      ],
      [
        'no token of those announced',
        [head()],
        invalid,
        ['tokens received is 0', 'the 32 tokens that the header announced'],
      ],
      [
        'a chunk beyond the tokens announced',
        [head(), part(0, 0, 16), chunk({ offset: 16, rows: Buffer.concat([rows(16, 16), rows(0, 1)]) })],
        invalid,
        ['chunk at offset 16 is "up to token 33"', 'at most the 32 tokens'],
      ],
      [
        'a message after the last token',
        [...good, part(32, 0, 1)],
        invalid,
        ['message after the last token', 'half-close after the 32 tokens'],
      ],
      [
        'rows above the limit of a message',
        [head({ length: 4096 }), chunk({ offset: 0, rows: Buffer.alloc(messageBytesMax + rowBytes) })],
        'TOO_LARGE',
        [
          'bytes of the chunk at offset 0 is 1049088',
          'at most 1048576, by messageBytesMax of router coordinator',
        ],
      ],
      [
        'a message above what the server receives at all',
        [head({ length: 4096 }), chunk({ offset: 0, rows: Buffer.alloc(3 * messageBytesMax) })],
        ...(over === 'grpc'
          ? (['TOO_LARGE', [`at most ${messageBytesMax}, by messageBytesMax of router`]] as [
              string,
              string[],
            ])
          : (['INVALID_ARGUMENT', ['a UCX message of', `at most ${3 * messageBytesMax}`]] as [
              string,
              string[],
            ])),
      ],
    ])('%s', async (_what, messages, code, said) => {
      await expectRefused(messages, code, said);
    });
  });

  describe('given routing is refused:', () => {
    /** Experts 0 and 1 for every token and layer, but for what `change` makes of them. */
    function given(change: (experts: Uint32Array, weights: Float32Array) => void): ForwardRequestInput[] {
      const experts = Uint32Array.from({ length: tokens * choices }, (_, index) => index % 2);
      const weights = new Float32Array(tokens * choices).fill(0.5);
      change(experts, weights);
      return [
        head({}, { routing: 'GIVEN' }),
        chunk({ offset: 0, rows: input, experts: packUint32(experts), weights: packFloat32(weights) }),
      ];
    }
    const inToken3 = 'of token 3, layer 1, choice 1';
    const at = 3 * choices + 3;
    const invalid = 'INVALID_ARGUMENT';
    test.each<Refusal>([
      [
        'an expert that the layer does not have',
        given((experts) => {
          experts[at] = 8;
        }),
        invalid,
        [`chunk.experts ${inToken3} is 8`, 'allowed: 0 to 7'],
      ],
      [
        'the largest number there is',
        given((experts) => {
          experts[at] = 2 ** 32 - 1;
        }),
        invalid,
        [`chunk.experts ${inToken3} is 4294967295`, 'allowed: 0 to 7'],
      ],
      [
        'a weight that is no number',
        given((_, weights) => {
          weights[at] = Number.NaN;
        }),
        invalid,
        [`chunk.weights ${inToken3} is NaN`, 'finite'],
      ],
      [
        'routing that is missing',
        [head({}, { routing: 'GIVEN' }), chunk({ offset: 0, rows: input })],
        invalid,
        ['chunk.experts at offset 0 is "0 bytes"', `${tokens * choices * 4} bytes`],
      ],
      [
        'routing that nobody asked for',
        [head(), chunk({ offset: 0, rows: input, experts: Buffer.alloc(16) })],
        invalid,
        ['chunk.experts at offset 0 is "16 bytes"', 'GIVEN'],
      ],
    ])('%s', async (_what, messages, code, said) => {
      await expectRefused(messages, code, said);
    });
  });

  describe('tokens with NaN and infinity', () => {
    const [nan, infinity] = [0x7fc0, 0xff80];
    const broken = Buffer.from(input);
    broken.writeUInt16LE(nan, 3 * rowBytes + 10);
    broken.writeUInt16LE(infinity, 20 * rowBytes);
    broken.writeUInt16LE(nan, 20 * rowBytes + 2);

    test('are counted and reported, and no other token is touched', async () => {
      const before = await readMetrics(cluster.metricsUrl);
      const { rows: answered, summary } = await answer([head(), chunk({ offset: 0, rows: broken })]);
      expect(summary).toMatchObject({ tokens, nonFiniteTokens: 2 });
      for (let token = 0; token < tokens; token++) {
        if (token === 3 || token === 20) continue;
        const [from, to] = [token * rowBytes, (token + 1) * rowBytes];
        expect(answered.subarray(from, to).equals(expected.subarray(from, to))).toBe(true);
      }
      const after = await readMetrics(cluster.metricsUrl);
      const name = 'switchyard_non_finite_tokens_total';
      expect((after.get(name) ?? 0) - (before.get(name) ?? 0)).toBe(2);
    });

    test('end the batch at the first of them if it refuses them', async () => {
      const refusing = [head({}, { refuseNonFinite: true }), chunk({ offset: 0, rows: broken })];
      await expectRefused(refusing, 'NON_FINITE', [
        'chunk.rows of token 3',
        'NaN or infinity',
        'finite values',
      ]);
    });
  });
});

test('nothing of what was refused is left in memory or under way', async () => {
  const metrics = await readMetrics(cluster.metricsUrl);
  expect(metrics.get('switchyard_batches_live')).toBe(0);
  expect(metrics.get('switchyard_in_flight_bytes')).toBe(0);
  expect(metrics.get('switchyard_link_outstanding_bytes')).toBe(0);
  expect(metrics.get('switchyard_dropped_rows_total')).toBe(0);
});
