import { randomBytes } from 'node:crypto';
import { connect as connectTcp, type Socket } from 'node:net';
import { expect, test } from '@jest/globals';
import { native, type UcxChannel } from '../../native/index.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { LinkHelloInput } from '../../services/common/generated/switchyard/v1/LinkHello.js';
import type { LinkOffer } from '../../services/common/generated/switchyard/v1/LinkOffer.js';
import type { RouterMessageInput } from '../../services/common/generated/switchyard/v1/RouterMessage.js';
import type {
  WorkerMessage,
  WorkerMessageInput,
} from '../../services/common/generated/switchyard/v1/WorkerMessage.js';
import { connect } from '../../services/common/grpc-channel.js';
import { clients, exchangeCodec } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { metadataRoom } from '../../services/transport/limits.js';
import { toWireMeta } from '../../services/transport/messages.js';
import { listeningSockets, openFiles } from '../support/sockets.js';
import { until } from '../support/until.js';
import { dialProcess, forkWorker, large } from './processes.js';
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
  ucxEnd,
  welcome,
} from './support.js';

const onUcx = native.ucx === null ? test.skip : test;
const refused = () => native.ucx!.stats().messagesRefused;

function openChannel(key: Uint8Array): UcxChannel {
  const channel = native
    .ucx!.fabric('machine')
    .openChannel({ key, messageBytesMax: 1 << 24, inboxBytesMax: 1 << 24 });
  atEnd(() => channel.close());
  return channel;
}

/** Sends rows of zeros, and these bytes where metadata belongs. */
function send(channel: UcxChannel, metadata: Uint8Array, rowsBytes = 0): void {
  const slab = native.allocateSlab(Math.max(1, rowsBytes), metadata.byteLength);
  channel.send(slab, rowsBytes, metadata);
  slab.release();
}

const encoded = (message: RouterMessageInput) => exchangeCodec.client.serialize(message);
const hello: RouterMessageInput = {
  hello: { modelFingerprint: 'f', epoch: 1, resultBytesMax: messageBytesMax },
};

const tokens = (exchange: number, rowCount: number) =>
  encoded({ tokens: { meta: toWireMeta(exchange, metaOf({ rowCount }), 0) } });

/** The offer of a router, over gRPC. `change`: what is wrong with it. */
function offerUcx(address: string, change: LinkHelloInput = {}) {
  const client = connect(clients.Experts, address, { token: null, messageBytesMax });
  atEnd(() => client.close());
  const call = client.Exchange(proofOf('bad'));
  const key = randomBytes(16);
  const channel = openChannel(key);
  const welcomed = new Promise<WorkerMessage>((resolve) => call.once('data', resolve));
  const ended = new Promise<SwitchyardError>((resolve) =>
    call.on('error', (error) => resolve(fromServiceError(error))),
  );
  call.write({ hello: { ...hello.hello, ucx: ucxEnd(channel.id), ucxKey: key, ...change } });
  return { call, key, channel, welcomed, ended };
}

/** A router that has moved to UCX as it should, and now says there what it likes. */
async function routerOnUcx(address: string) {
  const offer = offerUcx(address);
  const { ucx } = (await offer.welcomed).welcome!;
  const { channel } = offer;
  await channel.connect(ucx!.address, ucx!.channel);
  const received: WorkerMessage[] = [];
  const listen = async () => {
    for (;;) {
      for (const [slab, , metadata] of (await channel.receive()).messages) {
        received.push(exchangeCodec.client.deserialize(metadata));
        slab.release();
      }
    }
  };
  listen().catch(() => {});
  send(channel, encoded(hello));
  await until(() => received.length === 1);
  return { ...offer, received, peer: ucx! };
}

onUcx.each<[string, (channel: UcxChannel) => void, string, string]>([
  [
    'sends what is no message',
    (channel) => send(channel, Uint8Array.of(0xff, 0xff, 0xff)),
    'INVALID_ARGUMENT',
    'metadata of a UCX message is "3 other bytes"; allowed: a message of the protocol',
  ],
  [
    'sends rows that nothing is said of',
    (channel) => send(channel, encoded({ tokens: {} }), 64),
    'INVALID_ARGUMENT',
    'meta is "missing"',
  ],
  ['says hello again', (channel) => send(channel, encoded(hello)), 'INVALID_ARGUMENT', 'one hello on a link'],
  [
    'uses the number of an exchange twice',
    (channel) => {
      for (let i = 0; i < 2; i++) send(channel, tokens(5, 4), 4 * rowBytes);
    },
    'INVALID_ARGUMENT',
    'exchange is 5; allowed: above 5',
  ],
  [
    'sends more than a message may be',
    (channel) => send(channel, tokens(1, 4), messageBytesMax + (1 << 20) + 1),
    'INVALID_ARGUMENT',
    'allowed: their sum, at most',
  ],
  [
    'sends more than its credit',
    (channel) => {
      for (let i = 1; i <= 3; i++) send(channel, tokens(i, 1024), 1024 * rowBytes);
    },
    'RESOURCE_EXHAUSTED',
    'bytes of credit outstanding is',
  ],
])('a router that %s over UCX loses its link, and no other notices', async (_, misbehave, code, text) => {
  const handler = () => new Promise<never>(() => {});
  const { address } = await startWorker({ handler, linkWindowBytes: 2 * costOf(1024) });
  const good = await dial(address, { transport: 'ucx' });
  const waiting = good.exchange(batchOf(), never);
  const { channel, ended } = await routerOnUcx(address);
  misbehave(channel);
  const error = await ended;
  expect(error.code).toBe(code);
  expect(error.message).toContain(text);
  expect(good.stats).toMatchObject({ answersDiscarded: 0, bytesOutstanding: costOf(4) });
  good.close();
  await expect(waiting).rejects.toMatchObject({ message: expect.stringContaining('the router closed') });
});

type RouterOnUcx = Awaited<ReturnType<typeof routerOnUcx>>;

/** `come`: token batches that the worker has got. */
onUcx.each<[string, (router: RouterOnUcx, come: () => number) => Promise<void> | void, string]>([
  [
    'offers UCX after its token batches have come there',
    async ({ call, channel, key }, come) => {
      const before = come();
      send(channel, tokens(1, 4), 4 * rowBytes);
      await until(() => come() > before);
      call.write({ offer: { ucx: ucxEnd(channel.id), ucxKey: key } });
    },
    'kind is "offer"',
  ],
  [
    'offers a channel with a key that is too short',
    ({ call, channel }) => {
      call.write({ offer: { ucx: ucxEnd(channel.id), ucxKey: Buffer.alloc(15) } });
    },
    'ucx_key is "15 bytes"',
  ],
  [
    'uses the number of an exchange that is under way over gRPC',
    ({ call, channel }) => {
      const rows = Buffer.alloc(4 * rowBytes);
      call.write({ tokens: { meta: toWireMeta(7, metaOf({ rowCount: 4 }), 0), rows } });
      send(channel, tokens(7, 4), 4 * rowBytes);
    },
    'exchange is 7; allowed: one that has not come on the other way',
  ],
])('a router that %s loses its link, and no other notices', async (_, misbehave, text) => {
  let come = 0;
  const handler = () => {
    come += 1;
    return new Promise<never>(() => {});
  };
  const { address } = await startWorker({ handler });
  const good = await dial(address, { transport: 'ucx' });
  const waiting = good.exchange(batchOf(), never);
  const router = await routerOnUcx(address);
  await until(() => come === 1);
  await misbehave(router, () => come);
  expect(await router.ended).toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining(text),
  });
  good.close();
  await expect(waiting).rejects.toMatchObject({ message: expect.stringContaining('the router closed') });
});

onUcx('token batches ascend on each way by itself, and each is answered where it came', async () => {
  const { address } = await startWorker();
  const { call, channel, received } = await routerOnUcx(address);
  const overGrpc: WorkerMessage[] = [];
  call.on('data', (message: WorkerMessage) => overGrpc.push(message));
  const rows = Buffer.alloc(4 * rowBytes);
  call.write({ tokens: { meta: toWireMeta(9, metaOf({ rowCount: 4 }), 0), rows } });
  await until(() => overGrpc.length === 1);
  send(channel, tokens(3, 4), 4 * rowBytes);
  await until(() => received.length === 2);
  call.write({ tokens: { meta: toWireMeta(10, metaOf({ rowCount: 4 }), 0), rows } });
  await until(() => overGrpc.length === 2);
  const exchanges = (messages: WorkerMessage[]) =>
    messages.flatMap(({ result }) => result?.meta?.exchange ?? []);
  expect([exchanges(overGrpc), exchanges(received)]).toEqual([[9, 10], [3]]);
});

onUcx('a channel takes the place of the one that was offered before', async () => {
  const { address } = await startWorker();
  const { call, channel, received } = await routerOnUcx(address);
  const key = randomBytes(16);
  const second = openChannel(key);
  const answered = new Promise<WorkerMessage>((resolve) => call.once('data', resolve));
  call.write({ offer: { ucx: ucxEnd(second.id), ucxKey: key } });
  const { answer } = await answered;
  expect(answer).toMatchObject({ channel: second.id, ucxDeclined: '' });
  send(channel, tokens(1, 4), 4 * rowBytes);
  await second.connect(answer!.ucx!.address, answer!.ucx!.channel);
  send(second, tokens(1, 4), 4 * rowBytes);
  const { messages } = await second.receive();
  expect(exchangeCodec.client.deserialize(messages[0]![2]).result?.meta).toMatchObject({ exchange: 1 });
  messages[0]![0].release();
  expect(received).toHaveLength(1);
});

onUcx.each<[string, (offer: LinkOffer) => WorkerMessageInput[]]>([
  ['does not answer offers', () => []],
  ['answers what was never offered', () => [{ answer: { channel: 4_000_001, ucx: ucxEnd(1) } }]],
])('a link stays on gRPC with a worker that %s', async (_, answers) => {
  let offers = 0;
  const address = await rawWorker(({ hello, offer, tokens }, say) => {
    if (hello) say({ welcome: { ...welcome.welcome, ucxDeclined: 'no', ucxMayPass: true } });
    if (tokens) say({ failure: { exchange: tokens.meta!.exchange, code: 'INTERNAL', message: 'none' } });
    if (!offer) return;
    offers += 1;
    for (const answer of answers(offer)) say(answer);
  });
  const link = await dial(address, { transport: 'auto' });
  expect(link).toMatchObject({ transport: 'grpc', reason: 'no' });
  await until(() => offers === 1);
  await expect(link.exchange(batchOf(), never)).rejects.toMatchObject({ message: 'none' });
  expect(link.transport).toBe('grpc');
});

onUcx.each<[string, number, number]>([
  ['fewer', 3, 4],
  ['more', 5, 4],
  ['none', 0, 4],
  ['half a row more', 4.5, 4],
])('rows other than announced over UCX (%s) fail their exchange alone', async (_, sent, announced) => {
  const { address } = await startWorker();
  const { channel, received } = await routerOnUcx(address);
  send(channel, tokens(1, announced), sent * rowBytes);
  send(channel, tokens(2, 4), 4 * rowBytes);
  await until(() => received.length === 3);
  expect(received.find(({ failure }) => failure)!.failure).toMatchObject({
    exchange: 1,
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining(`meta.rows is ${announced}; allowed: the number of rows in the message`),
  });
  expect(received.find(({ result }) => result)!.result).toMatchObject({ meta: { exchange: 2, rows: 4 } });
});

onUcx('metadata that nobody pays for fails its exchange alone', async () => {
  const { address } = await startWorker();
  const { channel, received } = await routerOnUcx(address);
  // A field that no message has: protobuf skips it.
  const padding = Buffer.concat([Buffer.from([0xc2, 0x3e, 0x80, 0x80, 0x04]), Buffer.alloc(65_536)]);
  send(channel, Buffer.concat([tokens(1, 4), padding]), 4 * rowBytes);
  send(channel, tokens(2, 4), 4 * rowBytes);
  await until(() => received.length === 3);
  expect(received.find(({ failure }) => failure)!.failure).toMatchObject({
    exchange: 1,
    code: 'INVALID_ARGUMENT',
    message: expect.stringMatching(`allowed: ${metadataRoom(metaOf({ rowCount: 4 }))} for 4 row indices`),
  });
  expect(received.find(({ result }) => result)!.result).toMatchObject({ meta: { exchange: 2 } });
});

onUcx('a wrong key, and a channel that is closed or never was, are refused and counted', async () => {
  const { address } = await startWorker();
  const good = await dial(address, { transport: 'ucx' });
  const { call, key, peer, received } = await routerOnUcx(address);
  // Each end sends what opens a channel beside the message, so that at least one of each is refused.
  const stray = async (withKey: Uint8Array, to: number) => {
    const before = refused();
    const channel = openChannel(withKey);
    await channel.connect(peer.address, to);
    send(channel, tokens(1, 4), 4 * rowBytes);
    await until(() => refused() > before);
  };
  await stray(randomBytes(16), peer.channel);
  await stray(key, peer.channel + 1_000_000);
  call.cancel();
  await until(() => received.length === 1);
  await stray(key, peer.channel).catch(() => {});
  expect(received).toHaveLength(1);
  (await good.exchange(batchOf(), never)).rows.release();
});

onUcx.each<[string, LinkHelloInput, string]>([
  ['a key that is too short', { ucxKey: Buffer.alloc(15) }, 'ucx_key is "15 bytes"'],
  ['no key', { ucxKey: Buffer.alloc(0) }, 'ucx_key is "0 bytes"'],
  ['an address without its seal', { ucx: { address: Buffer.alloc(80, 3), channel: 1 } }, 'ucx.seal is ""'],
  [
    'an address that is damaged',
    { ucx: { address: Buffer.alloc(80, 3), channel: 1, seal: Buffer.alloc(8, 1) } },
    'ucx.seal is "0101010101010101"',
  ],
])('an offer of UCX with %s is refused', async (_, change, text) => {
  const { address } = await startWorker();
  const good = await dial(address, { transport: 'ucx' });
  const { ended } = offerUcx(address, change);
  expect(await ended).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(text) });
  (await good.exchange(batchOf(), never)).rows.release();
});

onUcx('a worker whose address is damaged gets no link over UCX; the router goes on over gRPC', async () => {
  const address = await rawWorker(({ hello }, say) => {
    const ucx = { address: Buffer.alloc(80, 3), channel: 1, seal: Buffer.alloc(8) };
    if (hello) say({ welcome: { ...welcome.welcome, ...(hello.ucx && { ucx }) } });
  });
  const link = await dial(address, { transport: 'auto' });
  expect(link).toMatchObject({ transport: 'grpc', reason: expect.stringContaining('ucx.seal is') });
});

/** Everything that a stranger may say to a port that is not gRPC's, short of UCX's own handshake. */
const garbage: [string, (turn: number) => Uint8Array][] = [
  ['nothing', () => new Uint8Array(0)],
  ['random bytes', (turn) => randomBytes(1 + ((turn * 997) % 20_000))],
  ['zeros', () => new Uint8Array(70_000)],
  ['HTTP', () => Buffer.from('GET /metrics HTTP/1.1\r\nHost: switchyard\r\n\r\n')],
  ['the preface of HTTP/2', () => Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')],
];

onUcx(
  'garbage to the ports that UCX and streams listen on is dropped, and links go on over those ports',
  async () => {
    const { worker, address } = await forkWorker({ UCX_TLS: 'tcp' });
    // Whoever serves the network can use TCP.
    const overTcp = { transport: 'ucx', host: '0.0.0.0' } as const;
    const link = await dialProcess(address, overTcp);
    expect(link.lanes).toBe('stream tcp');
    const ports = listeningSockets(worker.pid!).map(({ port }) => port);
    const ucxPorts = ports.filter((port) => !address.endsWith(`:${port}`));
    // One of UCX, and one of the stream if this end is the one that listens for it.
    expect([1, 2]).toContain(ucxPorts.length);
    const files = openFiles(worker.pid!).length;
    for (let turn = 0; turn < 20; turn++) {
      for (const [, make] of garbage) {
        const port = ucxPorts[turn % ucxPorts.length]!;
        const socket: Socket = connectTcp(port, '127.0.0.1');
        socket.on('error', () => {});
        const closed = new Promise((resolve) => socket.once('close', resolve));
        socket.end(make(turn));
        socket.resume();
        const { rows } = await link.exchange(large(), never);
        rows.release();
        socket.destroy();
        await closed;
      }
    }
    await until(() => openFiles(worker.pid!).length === files);
    const again = await dialProcess(address, { ...overTcp, router: 'another' });
    (await again.exchange(large(), never)).rows.release();
    (await link.exchange(large(), never)).rows.release();
    expect(worker.exitCode).toBeNull();
  },
);
