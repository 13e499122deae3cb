import { randomBytes } from 'node:crypto';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import { describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { SessionRequestInput } from '../../services/common/generated/switchyard/v1/SessionRequest.js';
import type { SessionResponse } from '../../services/common/generated/switchyard/v1/SessionResponse.js';
import type { Running } from '../../services/common/lifecycle.js';
import { sessionCodec } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { UcxPort, ucxOrNull } from '../../services/transport/ucx/port.js';
import { until } from '../support/until.js';
import { clientOf, forward, rowBytes, shape, startCluster, stateOf, tokens, untilIdle } from './cluster.js';

/** A client that says whatever it likes on the stream of a session, right or wrong. */
class RawSession {
  readonly call: ClientDuplexStream<SessionRequestInput, SessionResponse>;
  readonly received: SessionResponse[] = [];
  /** What the stream ended with; null: OK. */
  readonly end: Promise<SwitchyardError | null>;

  constructor(router: Running) {
    this.call = clientOf(router).Session();
    this.call.on('data', (message: SessionResponse) => this.received.push(message));
    this.end = new Promise((resolve) => {
      this.call.once('error', (error) => resolve(fromServiceError(error)));
      this.call.once('end', () => resolve(null));
    });
  }

  static async open(router: Running): Promise<RawSession> {
    const raw = new RawSession(router);
    raw.call.write({ hello: {} });
    await raw.until(1);
    return raw;
  }

  /** A batch as it is right, with `also` in it. */
  send(number: number, rows: Buffer, also: object = {}): void {
    const length = rows.byteLength / rowBytes;
    const header = { sequences: 1, length, hidden: shape.hidden, dtype: 'BF16', ...also } as const;
    this.call.write({ batch: { number, header, rows } });
  }

  async until(count: number): Promise<void> {
    await until(
      async () => this.received.length,
      (seen) => seen >= count,
    );
  }
}

describe('the stream of a session', () => {
  test('answers each batch by its number, the last answer with the summary, and ends well after the half-close', async () => {
    const { routers } = await startCluster();
    const raw = await RawSession.open(routers[0]!);
    expect(raw.received[0]).toMatchObject({
      welcome: { router: 'router-0', batchesMax: 64, tokensMax: 1024 },
    });
    const rows = await tokens(30);
    const expected = await forward(routers[0]!, rows, { options: { feedback: 'OFF' } });
    raw.send(7, rows, { options: { feedback: 'OFF' } });
    raw.send(9, rows, { options: { feedback: 'OFF', chunkTokens: 10 } });
    raw.call.end();
    expect(await raw.end).toBeNull();
    const answers = raw.received.slice(1).map(({ answer }) => answer!);
    for (const [number, parts] of [
      [7, 1],
      [9, 3],
    ]) {
      const own = answers.filter((answer) => answer.number === number);
      expect(own.map(({ summary }) => summary?.tokens ?? null)).toEqual([
        ...Array(parts! - 1).fill(null),
        30,
      ]);
      own.sort((a, b) => a.offset - b.offset);
      expect(Buffer.concat(own.map((answer) => answer.rows)).equals(expected.rows)).toBe(true);
    }
    await untilIdle(routers[0]!);
  });

  test('ends a batch that is wrong alone', async () => {
    const { routers } = await startCluster({ router: { messageBytesMax: 64 * 1024 } });
    const raw = await RawSession.open(routers[0]!);
    const rows = await tokens(4);
    const cases: [Buffer, object, string, string][] = [
      [rows, { length: 1025 }, 'INVALID_ARGUMENT', 'sequences x length is 1025; allowed: at most 1024'],
      [
        rows,
        { sequences: 2 ** 32 - 1, length: 2 ** 32 - 1 },
        'INVALID_ARGUMENT',
        'sequences x length is more than 9007199254740991; allowed: at most 1024',
      ],
      [rows, { ucx: {} }, 'INVALID_ARGUMENT', 'header.ucx is "given"; allowed: none in a session'],
      [rows, { ucxKey: Buffer.alloc(16) }, 'INVALID_ARGUMENT', 'header.ucx_key is "given"; allowed: none'],
      [rows, { length: 5 }, 'INVALID_ARGUMENT', 'tokens received is 4'],
      [rows, { length: 3 }, 'INVALID_ARGUMENT', 'chunk at offset 0 is "up to token 4"'],
      [rows, { hidden: 65 }, 'INVALID_ARGUMENT', 'hidden is 65'],
      [Buffer.alloc(0), { length: 1 }, 'INVALID_ARGUMENT', 'chunk.rows at offset 0 is "0 bytes"'],
      [rows, { options: { routing: 'GIVEN' } }, 'INVALID_ARGUMENT', 'chunk.experts at offset 0'],
      [Buffer.alloc(513 * rowBytes), {}, 'TOO_LARGE', 'messageBytesMax of router router-0'],
    ];
    for (const [index, [bytes, also]] of cases.entries()) raw.send(index + 1, bytes, also);
    raw.call.write({ batch: { number: 100, rows } });
    raw.send(101, rows);
    await raw.until(cases.length + 3);
    const of = (number: number) =>
      raw.received.find(({ answer, failure }) => (answer ?? failure)?.number === number)!;
    for (const [index, [, , code, message]] of cases.entries()) {
      expect(of(index + 1).failure).toMatchObject({ code, message: expect.stringContaining(message) });
    }
    expect(of(100).failure).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('batch.header'),
    });
    expect(of(101).answer).toMatchObject({ summary: { tokens: 4 } });
    raw.call.cancel();
    await untilIdle(routers[0]!);
  });

  test('is ended by what breaks its order', async () => {
    const { routers } = await startCluster();
    const router = routers[0]!;
    const rows = await tokens(1);
    const cases: [boolean, (raw: RawSession) => unknown, string, RegExp][] = [
      [false, (raw) => raw.send(1, rows), 'INVALID_ARGUMENT', /first message is "batch"; allowed: a hello/],
      [true, (raw) => raw.call.write({ hello: {} }), 'INVALID_ARGUMENT', /one hello on a session/],
      [true, (raw) => raw.call.write({}), 'INVALID_ARGUMENT', /kind of a session message/],
      [true, (raw) => raw.send(0, rows), 'INVALID_ARGUMENT', /batch.number is 0; allowed: above 0/],
      [
        true,
        (raw) => [5, 5].map((number) => raw.send(number, rows)),
        'INVALID_ARGUMENT',
        /batch.number is 5; allowed: above 5/,
      ],
      [
        true,
        (raw) => raw.send(2 ** 63, rows),
        'INVALID_ARGUMENT',
        /batch.number is more than 9007199254740991; allowed: above 0/,
      ],
    ];
    for (const [opened, say, code, message] of cases) {
      const raw = opened ? await RawSession.open(router) : new RawSession(router);
      say(raw);
      expect(await raw.end).toMatchObject({ code, message: expect.stringMatching(message) });
    }
    await untilIdle(router);
  });

  (native.ucx === null ? test.skip : test)('is ended by a second hello on its UCX channel', async () => {
    const { routers } = await startCluster();
    const router = routers[0]!;
    const key = randomBytes(16);
    const bytes = 1 << 20;
    const port = new UcxPort<SessionRequestInput, SessionResponse>(ucxOrNull('127.0.0.1', false)!, {
      codec: sessionCodec.client,
      key,
      rowBytesMax: bytes,
      rowBytesInFlightMax: bytes,
    });
    const arrived: SessionResponse[] = [];
    port
      .receive((message, rows) => {
        arrived.push(message);
        if (rows.kind === 'slab') rows.slab.release();
      })
      .catch(() => {});
    const raw = new RawSession(router);
    raw.call.write({ hello: { ucx: port.end, ucxKey: key } });
    await raw.until(1);
    await port.connect(raw.received[0]!.welcome!.ucx!);
    const hello = () => port.send({ make: () => ({ hello: {} }), rows: null, done: () => {} });
    hello();
    await until(
      async () => arrived.length,
      (count) => count === 1,
    );
    for (let times = 0; times < 100; times += 1) hello();
    expect(await raw.end).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/kind is "hello"; allowed: one hello on a session/),
    });
    expect(arrived).toMatchObject([{ welcome: { router: 'router-0' } }]);
    await port.destroy();
    await untilIdle(router);
  });

  test('of a client that says no hello, or takes no answer, ends after clientStallMs; an idle one does not', async () => {
    const { routers } = await startCluster({ router: { clientStallMs: 400 } });
    const router = routers[0]!;
    const idle = await RawSession.open(router);
    const silent = new RawSession(router);
    expect(await silent.end).toMatchObject({
      code: 'CLIENT_STALLED',
      message: expect.stringMatching(/missing: the hello$/),
    });
    const deaf = await RawSession.open(router);
    deaf.call.pause();
    const rows = await tokens(1024);
    // More than fits into the windows of HTTP/2, and fewer than may be without an answer.
    for (let number = 1; number <= 120; number += 1) deaf.send(number, rows);
    const sessions = async () => ((await stateOf(router)) as unknown as { sessions: number }).sessions;
    await until(sessions, (count) => count === 1);
    deaf.call.resume();
    expect(await deaf.end).toMatchObject({ code: 'CLIENT_STALLED' });
    idle.send(1, await tokens(2));
    await idle.until(2);
    expect(idle.received[1]).toMatchObject({ answer: { summary: { tokens: 2 } } });
    await untilIdle(router);
  });
});
