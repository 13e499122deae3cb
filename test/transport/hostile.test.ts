import { connect as connectHttp2 } from 'node:http2';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { RouterMessageInput } from '../../services/common/generated/switchyard/v1/RouterMessage.js';
import type {
  WorkerMessage,
  WorkerMessageInput,
} from '../../services/common/generated/switchyard/v1/WorkerMessage.js';
import { connect, windowBytes } from '../../services/common/grpc-channel.js';
import { clients, services } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import type { TokenBatch } from '../../services/transport/link.js';
import { toWireMeta } from '../../services/transport/messages.js';
import { until } from '../support/until.js';
import {
  atEnd,
  batchOf,
  costOf,
  dial,
  messageBytesMax,
  metaOf,
  never,
  proofOf,
  rawWorker,
  rowBytes,
  startWorker,
  welcome,
} from './support.js';

const hello = { hello: { modelFingerprint: 'f', epoch: 1, resultBytesMax: messageBytesMax } };

function tokens(exchange: number, rowCount = 4) {
  return {
    tokens: { meta: toWireMeta(exchange, metaOf({ rowCount }), 0), rows: Buffer.alloc(rowCount * rowBytes) },
  };
}

/** A router that says whatever it likes. */
function rawRouter(address: string) {
  const client = connect(clients.Experts, address, { token: null, messageBytesMax: 16 * messageBytesMax });
  atEnd(() => client.close());
  const call: ClientDuplexStream<RouterMessageInput, WorkerMessage> = client.Exchange(proofOf('bad'));
  const received: WorkerMessage[] = [];
  call.on('data', (message: WorkerMessage) => received.push(message));
  const ended = new Promise<SwitchyardError>((resolve) =>
    call.on('error', (error) => resolve(fromServiceError(error))),
  );
  return { call, received, ended };
}

describe('a router that breaks the protocol loses its link, and no other router notices', () => {
  test.each<[string, RouterMessageInput[], string, string]>([
    ['sends tokens before its hello', [tokens(1)], 'INVALID_ARGUMENT', 'hello as the first message'],
    ['says hello twice', [hello, hello], 'INVALID_ARGUMENT', 'one hello on a link'],
    [
      'sends rows without metadata',
      [hello, { tokens: { rows: Buffer.alloc(16) } }],
      'INVALID_ARGUMENT',
      'meta is',
    ],
    [
      'uses the number of an exchange twice',
      [hello, tokens(5), tokens(5)],
      'INVALID_ARGUMENT',
      'exchange is 5; allowed: above 5',
    ],
    ['uses no number', [hello, tokens(0)], 'INVALID_ARGUMENT', 'exchange is 0; allowed: above 0'],
  ])('it %s', async (_, messages, code, text) => {
    const { address } = await startWorker({ handler: () => new Promise(() => {}) });
    const good = await dial(address);
    const { call, ended } = rawRouter(address);
    for (const message of messages) call.write(message);
    const error = await ended;
    expect(error.code).toBe(code);
    expect(error.message).toContain(text);
    expect(good.stats.answersDiscarded).toBe(0);
    const waiting = good.exchange(batchOf(), never);
    good.close();
    await expect(waiting).rejects.toMatchObject({ message: expect.stringContaining('the router closed') });
  });

  test('it sends more than its credit', async () => {
    const cancelled: string[] = [];
    const { address } = await startWorker({
      linkWindowBytes: 2 * costOf(1024),
      handler: () => new Promise(() => {}),
      onCancel: (batchId) => cancelled.push(batchId),
    });
    const { call, received, ended } = rawRouter(address);
    for (const message of [hello, ...[1, 2, 3].map((exchange) => tokens(exchange, 1024))])
      call.write(message);
    expect(await ended).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      details: {
        value: 3 * costOf(1024),
        allowed: 2 * costOf(1024),
        setting: 'linkWindowBytes',
        node: 'worker w',
      },
    });
    expect(received.map(({ kind }) => kind)).toEqual(['welcome']);
    expect(cancelled).toEqual(['b']);
  });

  test('it asks for more results than it takes, and is told before anything is computed', async () => {
    const { address } = await startWorker({ handler: () => new Promise(() => {}) });
    const { call, received } = rawRouter(address);
    call.write({ hello: { ...hello.hello, resultBytesMax: 3 * rowBytes } });
    await until(() => received.length === 1);
    call.write(tokens(1, 4));
    await until(() => received.length === 2);
    expect(received[1]!.failure).toMatchObject({
      exchange: 1,
      code: 'TOO_LARGE',
      message: 'result bytes of a token batch is 64; allowed: at most 48, by result_bytes_max of router bad',
    });
  });

  test('it says nothing at all', async () => {
    const { address } = await startWorker();
    const { ended } = rawRouter(address);
    expect(await ended).toMatchObject({ code: 'DEADLINE_EXCEEDED', message: 'no hello within 5000 ms' });
  });

  test('but not one that says what only a newer version knows: it is counted, and the link goes on', async () => {
    const unknown: string[] = [];
    const { address } = await startWorker({ onUnknown: (stream) => unknown.push(stream) });
    const { call, received } = rawRouter(address);
    for (const message of [hello, {}, {}, tokens(1)]) call.write(message);
    await until(() => received.length === 2);
    expect(received.map(({ kind }) => kind)).toEqual(['welcome', 'result']);
    expect(unknown).toEqual(['link', 'link']);
    call.cancel();
  });

  test('it sends random bytes', async () => {
    const { address } = await startWorker();
    const good = await dial(address);
    const valid = Buffer.from(services.Experts.Exchange.requestSerialize(hello));
    const garbage = fc.oneof(
      fc.uint8Array({ maxLength: 64 }),
      // A valid message with some bytes changed.
      fc
        .array(fc.tuple(fc.nat({ max: valid.length - 1 }), fc.integer({ min: 0, max: 255 })), {
          minLength: 1,
          maxLength: 4,
        })
        .map((changes) => {
          const bytes = Uint8Array.from(valid);
          for (const [at, value] of changes) bytes[at] = value;
          return bytes;
        }),
    );
    const session = connectHttp2(`http://${address}`);
    atEnd(() => session.destroy());
    await fc.assert(
      fc.asyncProperty(garbage, async (bytes) => {
        const stream = session.request({
          ':method': 'POST',
          ':path': '/switchyard.v1.Experts/Exchange',
          'content-type': 'application/grpc',
          te: 'trailers',
          authorization: String(proofOf('bad').get('authorization')[0]),
        });
        const frame = Buffer.alloc(5);
        frame.writeUInt32BE(bytes.length, 1);
        stream.on('error', () => {});
        stream.resume();
        const closed = new Promise((resolve) => stream.on('close', resolve));
        stream.end(Buffer.concat([frame, bytes]));
        await closed;
      }),
      { numRuns: 60 },
    );
    (await good.exchange(batchOf(), never)).rows.release();
  });
});

describe('a router that does not read its answers', () => {
  test('is not read from beyond a bounded number of them', async () => {
    // As long as the text of a failure may be.
    const answerBytes = 4096;
    const handler = async ({ rows }: TokenBatch): Promise<never> => {
      rows.release();
      throw new Error('x'.repeat(answerBytes));
    };
    const { address } = await startWorker({ linkWindowBytes: 1e9, slabBytes: 4e9, handler });
    const { call, received } = rawRouter(address);
    call.write(hello);
    await until(() => received.length === 1);
    call.pause();
    let sent = 0;
    const pump = () => {
      for (let open = true; open && sent < 4_000; ) open = call.write(tokens(++sent, 1024));
    };
    call.on('drain', pump);
    pump();
    let before = -1;
    while (before !== sent) {
      before = sent;
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
    // Answers in the window and in the queue, requests in the window, and a few on either side.
    expect(sent).toBeLessThan(windowBytes / answerBytes + windowBytes / (1024 * rowBytes) + 200);
    call.cancel();
  });
});

describe('a worker that breaks the protocol', () => {
  test.each<[string, WorkerMessageInput, RegExp]>([
    [
      'answers before its welcome',
      { failure: { exchange: 1 } },
      /first message of the worker is not a welcome/,
    ],
    [
      'calls itself by another name',
      { welcome: { ...welcome.welcome, worker: 'w2' } },
      /sent a welcome of worker w2/,
    ],
    [
      'does not prove that it has the key',
      { welcome: { ...welcome.welcome, proof: Buffer.alloc(32) } },
      /does not know the key of worker w$/,
    ],
    [
      'proves nothing',
      { welcome: { ...welcome.welcome, proof: Buffer.alloc(0) } },
      /does not know the key of worker w$/,
    ],
    ['gives no credit', { welcome: { ...welcome.welcome, creditBytes: 0 } }, /credit_bytes is 0; allowed/],
  ])('gets no link: it %s', async (_, first, message) => {
    const address = await rawWorker((_, say) => say(first));
    await expect(dial(address)).rejects.toMatchObject({ message: expect.stringMatching(message) });
  });

  test('gets no link: it never says welcome', async () => {
    const address = await rawWorker(() => {});
    await expect(dial(address)).rejects.toMatchObject({
      code: 'LINK_LOST',
      message: expect.stringContaining('5000 ms'),
    });
  });

  test.each<[string, (exchange: number) => WorkerMessageInput, RegExp]>([
    [
      'answers what was never sent',
      () => ({ failure: { exchange: 99 } }),
      /answered exchange 99, which was never sent/,
    ],
    ['says welcome again', () => welcome, /sent a second welcome/],
  ])('loses the link: it %s', async (_, answer, message) => {
    const address = await rawWorker(({ hello, tokens }, say) => {
      if (hello) say(welcome);
      if (tokens) say(answer(tokens.meta!.exchange));
    });
    const link = await dial(address);
    await expect(link.exchange(batchOf(), never)).rejects.toMatchObject({
      code: 'LINK_LOST',
      message: expect.stringMatching(message),
    });
    await link.closed;
  });

  test.each<[string, number, number]>([
    ['fewer rows', 3, 3 * rowBytes],
    ['more bytes', 4, 5 * rowBytes],
    ['no bytes', 4, 0],
  ])('cannot pass off %s as an answer', async (_, rows, bytes) => {
    const address = await rawWorker(({ hello, tokens }, say) => {
      if (hello) say(welcome);
      if (tokens)
        say({ result: { meta: { exchange: tokens.meta!.exchange, rows }, rows: Buffer.alloc(bytes) } });
    });
    const link = await dial(address);
    await expect(link.exchange(batchOf(), never)).rejects.toMatchObject({
      code: 'DATA_LOSS',
      message: `worker w answered ${rows} rows in ${bytes} bytes; expected: 4 rows in 64`,
    });
    expect(link.stats.bytesOutstanding).toBe(0);
  });

  test('says what only a newer version knows: it is counted, and the link goes on', async () => {
    const unknown: string[] = [];
    const address = await rawWorker(({ hello, tokens }, say) => {
      if (hello) say(welcome);
      const answer = { meta: { exchange: tokens?.meta?.exchange ?? 0, rows: 4 }, rows: Buffer.alloc(64) };
      if (tokens) for (const message of [{}, { result: answer }]) say(message);
    });
    const link = await dial(address, { onUnknown: (stream) => unknown.push(stream) });
    (await link.exchange(batchOf(), never)).rows.release();
    expect(unknown).toEqual(['link']);
  });

  test('answers twice: the second answer is discarded', async () => {
    const address = await rawWorker(({ hello, tokens }, say) => {
      if (hello) say(welcome);
      const answer = { meta: { exchange: tokens?.meta?.exchange ?? 0, rows: 4 }, rows: Buffer.alloc(64) };
      if (tokens) for (let i = 0; i < 3; i++) say({ result: answer });
    });
    const link = await dial(address);
    (await link.exchange(batchOf(), never)).rows.release();
    await until(() => link.stats.answersDiscarded === 2);
    expect(link.stats).toMatchObject({ messagesReceived: 1, bytesOutstanding: 0 });
  });
});
