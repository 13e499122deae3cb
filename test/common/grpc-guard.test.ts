import { once } from 'node:events';
import { type ClientHttp2Session, connect as connectHttp2, createServer } from 'node:http2';
import { type AddressInfo, connect as connectTcp } from 'node:net';
import { promisify } from 'node:util';
import { gzip } from 'node:zlib';
import { Server, ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js';
import { describe, expect, test } from '@jest/globals';
import { connect } from '../../services/common/grpc-channel.js';
import { boundConnections, guardCalls, skipGoneStreams } from '../../services/common/grpc-guard.js';
import { clients } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { atEnd, inference, messageBytesMax, serve } from './support.js';

const mebibyte = 1024 * 1024;
type Headers = Record<string, string | string[] | undefined>;

function session(address: string): ClientHttp2Session {
  const made = connectHttp2(`http://${address}`);
  made.on('error', () => {});
  atEnd(() => made.destroy());
  return made;
}

function framed(bytes: Uint8Array, compressed: boolean): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(compressed ? 1 : 0, 0);
  head.writeUInt32BE(bytes.byteLength, 1);
  return Buffer.concat([head, bytes]);
}

/** A call as gRPC has it on HTTP/2. Resolves with the status' headers, in whichever block they come. */
function raw(over: ClientHttp2Session, path: string, body: Buffer, headers: Headers = {}): Promise<Headers> {
  const stream = over.request({
    ':method': 'POST',
    ':path': path,
    'content-type': 'application/grpc',
    te: 'trailers',
    ...headers,
  });
  stream.on('error', () => {});
  stream.resume();
  stream.end(body);
  return new Promise((resolve) => {
    let seen: Headers = {};
    stream.on('response', (first) => (seen = { ...first }));
    stream.on('trailers', (last) => (seen = { ...seen, ...last }));
    stream.on('close', () => resolve(seen));
    stream.on('end', () => stream.close());
  });
}

describe('compressed messages', () => {
  const forward = '/switchyard.v1.Inference/Forward';
  const paths = [
    forward,
    '/switchyard.v1.Inference/DescribeModel',
    '/grpc.health.v1.Health/Check',
    '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo',
  ];
  /** Takes whatever comes. */
  const read = (call: ServerDuplexStream<object, object>) =>
    call.on('data', () => {}).on('end', () => call.end());

  test('are refused on every service, with the word of what is accepted', async () => {
    const { address } = await serve({ services: [inference('m', read)] });
    const over = session(address);
    for (const path of paths) {
      const bytes = framed(await promisify(gzip)(Buffer.alloc(100)), true);
      for (const encoding of ['gzip', 'deflate', 'zstd']) {
        const answer = await raw(over, path, bytes, { 'grpc-encoding': encoding });
        expect(answer).toMatchObject({ 'grpc-status': '12', 'grpc-accept-encoding': 'identity' });
        expect(decodeURI(String(answer['grpc-message']))).toBe(
          `grpc-encoding is "${encoding}"; allowed: identity, as compressed messages are not taken`,
        );
      }
    }
  });

  test('of 32 KB that would be 32 MiB, 200 at once, take no memory', async () => {
    const { address } = await serve({
      services: [inference('m', read)],
      messageLimit: { bytesMax: 32 * mebibyte, node: 'router r' },
    });
    const bomb = framed(await promisify(gzip)(Buffer.alloc(32 * mebibyte)), true);
    expect(bomb.byteLength).toBeLessThan(40_000);
    const over = session(address);
    const before = process.memoryUsage.rss();
    let peak = before;
    const sampling = setInterval(() => (peak = Math.max(peak, process.memoryUsage.rss())), 5);
    const answers = await Promise.all(
      Array.from({ length: 200 }, () => raw(over, forward, bomb, { 'grpc-encoding': 'gzip' })),
    );
    clearInterval(sampling);
    expect(answers.map((answer) => answer['grpc-status'])).toEqual(Array(200).fill('12'));
    expect(peak - before).toBeLessThan(128 * mebibyte);
  });

  test('are refused by their flag alone, before they are here, whatever encoding was announced', async () => {
    const { address } = await serve({ services: [inference('m', read)] });
    const over = session(address);
    const head = framed(Buffer.alloc(0), true);
    head.writeUInt32BE(60_000, 1);
    const good = framed(Buffer.alloc(0), false);
    for (const path of paths) {
      for (const body of [head, framed(Buffer.alloc(100), true), Buffer.concat([good, head])]) {
        const answer = await raw(over, path, body);
        expect(answer).toMatchObject({ 'grpc-status': '12', 'switchyard-code': 'INVALID_ARGUMENT' });
        expect(decodeURI(String(answer['grpc-message']))).toBe(
          'compressed flag of a message is 1; allowed: 0, as compressed messages are not taken',
        );
      }
    }
  });

  test('are not invited: answers name identity alone', async () => {
    const { address } = await serve({ services: [inference('m', read)] });
    const plain = framed(Buffer.alloc(0), false);
    const answer = await raw(session(address), '/switchyard.v1.Inference/DescribeModel', plain, {
      'grpc-encoding': 'identity',
    });
    expect(answer).toMatchObject({ 'grpc-status': '0', 'grpc-accept-encoding': 'identity' });
  });
});

describe('small requests', () => {
  test('are refused by their announced size, before they are here', async () => {
    const { address } = await serve({});
    const head = framed(Buffer.alloc(0), false);
    head.writeUInt32BE(messageBytesMax, 1);
    for (const path of ['/switchyard.v1.Inference/DescribeModel', '/grpc.health.v1.Health/Check']) {
      const answer = await raw(session(address), path, head);
      expect(answer).toMatchObject({ 'grpc-status': '8', 'switchyard-code': 'TOO_LARGE' });
      expect(decodeURI(String(answer['grpc-message']))).toBe(
        `bytes of a message of ${path} is ${messageBytesMax}; allowed: at most 65536`,
      );
    }
  });
});

describe('a message of a stream above any limit', () => {
  const announced = (length: number) => {
    const head = framed(Buffer.alloc(0), false);
    head.writeUInt32BE(length, 1);
    return head;
  };
  const read = (call: ServerDuplexStream<object, object>) => call.on('data', () => call.write({}));

  test('names the limit, its setting and the node', async () => {
    const { address } = await serve({ services: [inference('m', read)] });
    const path = '/switchyard.v1.Inference/Forward';
    // Alone, and once an answer has left.
    for (const before of [Buffer.alloc(0), framed(Buffer.alloc(0), false)]) {
      for (const length of [3 * messageBytesMax + 1, 0xfffffff0]) {
        const answer = await raw(session(address), path, Buffer.concat([before, announced(length)]));
        expect(answer).toMatchObject({ 'grpc-status': '8', 'switchyard-code': 'TOO_LARGE' });
        expect(decodeURI(String(answer['grpc-message']))).toBe(
          `bytes of a message of ${path} is ${length}; allowed: at most ${messageBytesMax}, by messageBytesMax of router r`,
        );
        expect(JSON.parse(String(answer['switchyard-details']))).toMatchObject({
          value: length,
          allowed: messageBytesMax,
          setting: 'messageBytesMax',
          node: 'router r',
        });
      }
    }
  });
});

describe('calls', () => {
  test('of one connection leave some to others, and come back', async () => {
    const server = new Server({
      interceptors: [guardCalls(8, () => null, { bytesMax: messageBytesMax, node: 'router r' })],
    });
    const { definition, implementation } = inference('m', (call: ServerDuplexStream<object, object>) =>
      call.on('data', () => call.write({})),
    );
    server.addService(definition, implementation);
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      ),
    );
    atEnd(() => server.forceShutdown());
    const client = () => {
      const made = connect(clients.Inference, `127.0.0.1:${port}`, { token: null, messageBytesMax });
      atEnd(() => made.close());
      return made;
    };
    /** Null if the call is under way. */
    const open = (by: ReturnType<typeof client>) => {
      const call = by.Forward();
      call.write({ header: { batchId: 'b' } });
      return new Promise<{ call: typeof call; refused: string | null }>((resolve) => {
        call.once('data', () => resolve({ call, refused: null }));
        call.on('error', (error) => resolve({ call, refused: fromServiceError(error).message }));
      });
    };
    const [greedy, other] = [client(), client()];
    const calls = [];
    for (let index = 0; index < 5; index += 1) calls.push(await open(greedy));
    expect(calls.map(({ refused }) => refused === null)).toEqual([true, true, true, true, false]);
    expect(calls[4]!.refused).toBe(
      'the connection has 4 calls under way; allowed: fewer than are free of 8, now 4',
    );
    expect((await open(other)).refused).toBeNull();
    for (const { call } of calls) call.cancel();
    for (let free = false; !free; ) free = (await open(greedy)).refused === null;
  });
});

describe('connections', () => {
  test('that never say anything make way for new ones, and those with a call stay', async () => {
    const server = createServer();
    boundConnections(server, 4);
    server.on('stream', (stream) => {
      stream.on('error', () => {});
      stream.respond({ ':status': 200 });
    });
    server.on('sessionError', () => {});
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    atEnd(() => server.close());
    const { port } = server.address() as AddressInfo;
    const busy = session(`127.0.0.1:${port}`);
    const stream = busy.request({ ':method': 'POST' });
    await once(stream, 'response');
    let closed = 0;
    for (let index = 0; index < 20; index += 1) {
      const socket = connectTcp(port, '127.0.0.1');
      socket.on('error', () => {}).on('close', () => (closed += 1));
      socket.resume();
      atEnd(() => socket.destroy());
      await once(socket, 'connect');
    }
    while (closed < 17) await new Promise((resolve) => setTimeout(resolve, 5));
    expect(busy.destroyed || stream.closed).toBe(false);
    const late = session(`127.0.0.1:${port}`).request({ ':method': 'POST' });
    await once(late, 'response');
    expect(closed).toBeGreaterThanOrEqual(17);
  });
});

test('streams that are gone when a server hears of them are kept from who would answer them, and others are not', async () => {
  const server = createServer();
  const answered: unknown[] = [];
  // Throws where the stream is gone.
  server.on('stream', (stream, headers) => {
    stream.respond({ ':status': 415 }, { endStream: true });
    answered.push(headers[':path']);
  });
  skipGoneStreams(server);
  server.on('session', (made) =>
    made.prependListener('stream', (stream, headers) => {
      if (headers[':path'] === '/gone') stream.destroy();
    }),
  );
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  atEnd(() => server.close());
  const over = session(`127.0.0.1:${(server.address() as AddressInfo).port}`);
  for (const path of ['/gone', '/here']) {
    const stream = over.request({ ':path': path });
    stream.on('error', () => {}).resume();
    await once(stream, 'close');
  }
  expect(answered).toEqual(['/here']);
});
