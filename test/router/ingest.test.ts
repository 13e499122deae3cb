import { afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { native, type Slab } from '../../native/index.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { Chunk } from '../../services/common/generated/switchyard/v1/Chunk.js';
import type { ForwardRequest } from '../../services/common/generated/switchyard/v1/ForwardRequest.js';
import { sleep } from '../../services/common/lifecycle.js';
import { ByteBudget } from '../../services/router/budget.js';
import type { ClientMessage } from '../../services/router/check-chunk.js';
import { Ingest, type InputChunk } from '../../services/router/ingest.js';
import type { BatchPlan } from '../../services/router/plan.js';
import { readRouting } from '../../services/router/routing-table.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import type { TransportKind } from '../../services/transport/link.js';
import { arrived, hashedPlan, isolatingPlan, options, plan, slabBytesHeld } from './support.js';

beforeAll(() => native.configure({ slabBytesMax: 64 * 1024 * 1024, threads: 2 }));
afterEach(async () => expect(await slabBytesHeld()).toBe(0));

const signal = new AbortController().signal;

/** The rows of token t are filled with t. */
function tokenRows(first: number, count: number, hidden: number): Buffer {
  const rows = new Uint16Array(count * hidden);
  for (let token = 0; token < count; token += 1)
    rows.fill(first + token, token * hidden, (token + 1) * hidden);
  return Buffer.from(rows.buffer);
}

/** The id of token t is t, where tokens need one. */
function idsOf(batch: BatchPlan, first: number, count: number): Uint32Array {
  return new Uint32Array(batch.tokenIds?.needed ? count : 0).map((_, index) => first + index);
}

function message(
  batch: BatchPlan,
  first: number,
  count: number,
  fields: Partial<Chunk> = {},
): ForwardRequest {
  const perToken = batch.layers.length * batch.topK;
  const experts = new Uint32Array(batch.given ? count * perToken : 0).map((_, index) => index % batch.topK);
  const weights = new Float32Array(batch.given ? count * perToken : 0).map(
    (_, index) => first * perToken + index,
  );
  return {
    kind: 'chunk',
    chunk: {
      offset: first,
      rows: tokenRows(first, count, batch.hidden),
      experts: Buffer.from(experts.buffer),
      weights: Buffer.from(weights.buffer),
      tokenIds: Buffer.from(idsOf(batch, first, count).buffer),
      ...fields,
    },
  };
}

/** How the rows of the messages arrive. */
let over: TransportKind = 'grpc';
/** Messages whose rows are not taken, all of which a batch that succeeds has taken. */
let untaken = 0;

/** Messages as a client sends them, with pauses (milliseconds) in between. */
function source(messages: (ForwardRequest | number)[]) {
  const queue = [...messages];
  return {
    async next(): Promise<ClientMessage | null> {
      while (typeof queue[0] === 'number') await sleep(queue.shift() as number);
      const request = queue.shift() as ForwardRequest | undefined;
      if (request === undefined) return null;
      untaken += 1;
      return arrived(request, over, () => {
        untaken -= 1;
      });
    },
  };
}

function ingest(
  batch: BatchPlan,
  messages: (ForwardRequest | number)[],
  budget = new ByteBudget(1e9),
  busy = () => false,
) {
  const share = budget.open();
  return new Ingest({
    plan: batch,
    source: source(messages),
    share,
    messageLimit: { bytesMax: 1e6, node: 'router r' },
    busy,
    signal,
    runtime: nativeRuntime,
  });
}

/** Takes all chunks, and checks that they hold the tokens of the batch in order. */
async function collect(batch: BatchPlan, from: Ingest): Promise<Pick<InputChunk, 'offset' | 'tokens'>[]> {
  const seen: Pick<InputChunk, 'offset' | 'tokens'>[] = [];
  let next = 0;
  for await (const chunk of from.chunks()) {
    expect(chunk).toMatchObject({ index: seen.length, offset: next });
    const held = chunk.rows.view().subarray(0, chunk.tokens * batch.rowBytes);
    expect(Buffer.compare(held, tokenRows(next, chunk.tokens, batch.hidden))).toBe(0);
    const perToken = batch.layers.length * batch.topK;
    if (batch.given) {
      const { weights } = await readRouting(native, chunk.given!, 0, chunk.tokens, batch);
      expect([...new Float32Array(new Uint8Array(weights).buffer)]).toEqual(
        Array.from({ length: chunk.tokens * perToken }, (_, index) => next * perToken + index),
      );
      chunk.given!.release();
    } else expect(chunk.given).toBeNull();
    expect(chunk.tokenIds).toEqual(batch.tokenIds?.needed ? idsOf(batch, next, chunk.tokens) : null);
    next += chunk.tokens;
    seen.push({ offset: chunk.offset, tokens: chunk.tokens });
    chunk.rows.release();
    chunk.reservation.release();
  }
  expect(next).toBe(batch.tokens);
  expect(untaken).toBe(0);
  return seen;
}

async function refusal(batch: BatchPlan, messages: ForwardRequest[]): Promise<SwitchyardError> {
  const budget = new ByteBudget(1e9);
  const from = ingest(batch, messages, budget);
  try {
    for await (const chunk of from.chunks()) {
      chunk.rows.release();
      chunk.given?.release();
      chunk.reservation.release();
    }
    await from.expectEnd();
  } catch (error) {
    expect(budget.used).toBe(0);
    return error as SwitchyardError;
  }
  throw new Error('the batch was accepted');
}

describe.each<TransportKind>(['grpc', 'ucx'])('over %s', (transport) => {
  beforeAll(() => {
    over = transport;
  });
  beforeEach(() => {
    untaken = 0;
  });

  describe('messages of any size', () => {
    test('become full chunks with every token in its place, given routing or ids with them', async () => {
      const shapes = fc.record({
        cuts: fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 12 }),
        chunkTokens: fc.integer({ min: 1, max: 50 }),
        routed: fc.constantFrom('gated', 'given', 'by ids'),
      });
      await fc.assert(
        fc.asyncProperty(shapes, async ({ cuts, chunkTokens, routed }) => {
          const tokens = cuts.reduce((sum, count) => sum + count, 0);
          const routing = options({ routing: routed === 'given' ? 'GIVEN' : 'GATE' });
          const of = routed === 'by ids' ? hashedPlan : plan;
          const batch = of({ sequences: tokens, length: 1, options: routing }, { chunkTokens });
          let first = 0;
          const messages = cuts.map((count) => {
            first += count;
            return message(batch, first - count, count);
          });
          const budget = new ByteBudget(1e9);
          const from = ingest(batch, messages, budget);
          const chunks = await collect(batch, from);
          await from.expectEnd();
          expect(budget.used).toBe(0);
          expect(chunks).toHaveLength(Math.ceil(tokens / chunkTokens));
          expect(chunks.slice(0, -1).every((chunk) => chunk.tokens === chunkTokens)).toBe(true);
        }),
        { numRuns: 40 },
      );
    });

    test('are waited for while the pipeline has other chunks of the batch', async () => {
      const batch = plan({}, { chunkTokens: 16 });
      const messages = [message(batch, 0, 4), 150, message(batch, 4, 28)];
      const chunks = await collect(
        batch,
        ingest(batch, messages, undefined, () => true),
      );
      expect(chunks.map((chunk) => chunk.tokens)).toEqual([16, 16]);
    });

    test('go on as a shorter chunk when the client pauses', async () => {
      const batch = plan({}, { chunkTokens: 16 });
      const messages = [
        message(batch, 0, 4),
        message(batch, 4, 1),
        120,
        message(batch, 5, 20),
        message(batch, 25, 7),
      ];
      expect(await collect(batch, ingest(batch, messages))).toEqual([
        { offset: 0, tokens: 5 },
        { offset: 5, tokens: 16 },
        { offset: 21, tokens: 11 },
      ]);
    });

    test('are not read while the budget is spent', async () => {
      const batch = plan({}, { chunkTokens: 8 });
      const budget = new ByteBudget(100_000);
      const holder = await budget.open().reserve(99_000, signal);
      let read = 0;
      const counted = source([message(batch, 0, 8), message(batch, 8, 8), message(batch, 16, 16)]);
      const next = () => {
        read += 1;
        return counted.next();
      };
      const from = new Ingest({
        plan: batch,
        source: { next },
        share: budget.open(),
        messageLimit: { bytesMax: 1e6, node: 'router r' },
        busy: () => false,
        signal,
        runtime: nativeRuntime,
      });
      const done = collect(batch, from);
      while (budget.waiting === 0) await sleep(5);
      expect(read).toBe(1);
      holder.release();
      await done;
      expect(read).toBe(3);
    });
  });

  describe('a batch is refused', () => {
    const batch = plan({}, { chunkTokens: 10 });

    test('when tokens are missing at its end', async () => {
      const error = await refusal(batch, [message(batch, 0, 12)]);
      expect(error.message).toBe('tokens received is 12; allowed: the 32 tokens that the header announced');
    });

    test('when there is more after its last token', async () => {
      const error = await refusal(batch, [message(batch, 0, 32), message(batch, 32, 1)]);
      expect(error.message).toContain('message after the last token');
    });

    test('when it grows beyond what was announced', async () => {
      const error = await refusal(batch, [message(batch, 0, 30), message(batch, 30, 3)]);
      expect(error.message).toContain('at most the 32 tokens');
    });

    test('for any sequence of messages that is not its tokens in order, exactly', async () => {
      const pieces = fc.array(fc.record({ offset: fc.nat(34), tokens: fc.integer({ min: 1, max: 20 }) }), {
        maxLength: 5,
      });
      await fc.assert(
        fc.asyncProperty(pieces, async (sequence) => {
          let expected = 0;
          const inOrder = sequence.every(({ offset, tokens }) => {
            const fits = offset === expected;
            expected += tokens;
            return fits;
          });
          const messages = sequence.map(({ offset, tokens }) => message(batch, offset, tokens));
          if (inOrder && expected === batch.tokens) await collect(batch, ingest(batch, messages));
          else expect((await refusal(batch, messages)).code).toBe('INVALID_ARGUMENT');
        }),
      );
    });
  });

  test('has ids of all its tokens or of none where they may be left out', async () => {
    const batch = isolatingPlan({}, { chunkTokens: 10 });
    const part = (first: number, count: number, ids = count) => {
      const tokenIds = Buffer.from(new Uint32Array(ids).map((_, index) => first + index).buffer);
      return message(batch, first, count, { tokenIds });
    };
    const parts = [part(0, 13), part(13, 19)];
    const seen: number[] = [];
    for await (const chunk of ingest(batch, parts).chunks()) {
      seen.push(...chunk.tokenIds!);
      chunk.rows.release();
      chunk.reservation.release();
    }
    expect(seen).toEqual(Array.from({ length: batch.tokens }, (_, token) => token));
    untaken = 0;
    await collect(batch, ingest(batch, [part(0, 13, 0), part(13, 19, 0)]));
    const mixed = await refusal(batch, [part(0, 13), part(13, 19, 0)]);
    expect(mixed.message).toContain('chunk.token_ids at offset 13 is "0 bytes"; allowed: 76 bytes');
    const late = await refusal(batch, [part(0, 13, 0), part(13, 19)]);
    expect(late.message).toContain('allowed: none, as the chunks before have none');
  });

  test('is refused at the first routing that is wrong, wherever chunks are cut', async () => {
    const batch = plan({ options: options({ routing: 'GIVEN' }) }, { chunkTokens: 10 });
    for (let token = 0; token < 24; token += 1) {
      const wrong = message(batch, 8, 24);
      wrong.chunk!.experts.writeUInt32LE(6, token * 24 + 12);
      const error = await refusal(batch, [message(batch, 0, 8), wrong]);
      expect(error.details.field).toBe(`chunk.experts of token ${8 + token}, layer 1, choice 1`);
    }
  });
});

test('a slab that is just the next chunk becomes it', async () => {
  const batch = plan({}, { chunkTokens: 16 });
  const messages = [arrived(message(batch, 0, 16), 'ucx'), arrived(message(batch, 16, 16), 'ucx')];
  const [first] = messages;
  const next = async () => messages.shift() ?? null;
  const share = new ByteBudget(1e9).open();
  const from = new Ingest({
    plan: batch,
    source: { next },
    share,
    messageLimit: { bytesMax: 1e6, node: 'router r' },
    busy: () => false,
    signal,
    runtime: nativeRuntime,
  });
  const slabs: Slab[] = [];
  for await (const { rows } of from.chunks()) slabs.push(rows);
  expect(first!.rows).toMatchObject({ kind: 'slab' });
  expect(slabs[0] === (first!.rows as { slab: Slab }).slab).toBe(true);
  for (const slab of slabs) slab.release();
});
