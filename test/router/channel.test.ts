import { randomBytes } from 'node:crypto';
import { afterEach, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { ChannelMessageInput } from '../../services/common/generated/switchyard/v1/ChannelMessage.js';
import type { UcxEnd } from '../../services/common/generated/switchyard/v1/UcxEnd.js';
import { type Running, sleep } from '../../services/common/lifecycle.js';
import { channelCodec } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { sealOf } from '../../services/transport/ucx/port.js';
import type { GrpcCall } from '../support/ucx-call.js';
import { until } from '../support/until.js';
import { clientOf, forward, header, rowBytes, startCluster, tokens, untilIdle } from './cluster.js';
import { slabBytesHeld } from './support.js';

const off = { options: { feedback: 'OFF' } } as const;
const total = 64;
const metadataBytesMax = 2 * 1024 * 1024;

/** A client that sends over its channel whatever it likes, right or wrong. */
const fabric = () => native.ucx!.fabric('machine');

class RawChannel {
  readonly channel;
  /** Credit, then chunks, as the router sent them. */
  readonly received: ChannelMessageInput[] = [];
  readonly error: Promise<SwitchyardError>;
  /** The router's end. */
  welcomeEnd!: UcxEnd;

  private constructor(
    readonly call: GrpcCall,
    readonly key: Uint8Array,
  ) {
    this.channel = fabric().openChannel({ key, messageBytesMax: 1 << 24, inboxBytesMax: 1 << 28 });
    this.error = new Promise((resolve) => call.once('error', (error) => resolve(fromServiceError(error))));
  }

  /** Sends a header with an offer; `say`: whether it also says its credit, as it must. */
  static async open(router: Running, { creditBytes = 1 << 20, say = true } = {}): Promise<RawChannel> {
    const raw = new RawChannel(clientOf(router).Forward(), randomBytes(16));
    const address = Buffer.from(fabric().address());
    const end = { address, channel: raw.channel.id, seal: sealOf(address) };
    raw.call.write(header({ length: total, ...off, ucx: end, ucxKey: Buffer.from(raw.key) }));
    const welcome = await new Promise<UcxEnd>((resolve, reject) => {
      raw.call.once('data', ({ welcome }) => resolve(welcome!.ucx!));
      raw.call.once('error', reject);
    });
    raw.call.on('error', () => {});
    raw.welcomeEnd = welcome;
    await raw.channel.connect(welcome.address, welcome.channel);
    void raw.listen();
    if (!say) return raw;
    raw.say({ credit: { bytes: creditBytes } });
    await raw.until(1);
    return raw;
  }

  get creditBytes(): number {
    return Number(this.received[0]!.credit!.bytes);
  }

  say(message: ChannelMessageInput, rows: Uint8Array = new Uint8Array(0)): void {
    this.sayBytes(channelCodec.serialize(message), rows);
  }

  sayBytes(metadata: Uint8Array, rows: Uint8Array = new Uint8Array(0)): void {
    const slab = native.allocateSlab(Math.max(1, rows.byteLength), metadataBytesMax);
    slab.view().set(rows);
    this.channel.send(slab, rows.byteLength, metadata);
    slab.release();
  }

  async until(count: number): Promise<void> {
    while (this.received.length < count) await sleep(5);
  }

  private async listen(): Promise<void> {
    for (;;) {
      const arrivals = await this.channel.receive().catch(() => null);
      if (arrivals === null) return;
      for (const [slab, , metadata] of arrivals.messages) {
        slab.release();
        this.received.push(channelCodec.deserialize(metadata));
      }
    }
  }
}

afterEach(() => until(slabBytesHeld, (held) => held < 8 * 1024 * 1024));

(native.ucx === null ? describe.skip : describe)('a client that breaks the rules of its channel', () => {
  const rows = tokens(total);
  const one = async () => (await rows).subarray(0, rowBytes);

  test('is refused by name and value, and harms nobody', async () => {
    const { routers } = await startCluster();
    const router = routers[0]!;
    const good = await forward(router, await rows, off);
    const row = await one();
    const cases: [string, (raw: RawChannel) => unknown, string, string][] = [
      [
        'sends more than its credit',
        (raw) => {
          const part = Buffer.alloc(raw.creditBytes / 2 + rowBytes);
          raw.say({ chunk: { offset: 0 } }, part);
          raw.say({ chunk: { offset: 0 } }, part);
        },
        'RESOURCE_EXHAUSTED|INVALID_ARGUMENT',
        'came over UCX; allowed: |allowed: at most',
      ],
      [
        'has rows in the metadata too',
        (raw) => raw.say({ chunk: { offset: 0, rows: row } }, row),
        'INVALID_ARGUMENT',
        'metadata of the chunk at offset 0 is .* rows lie beside it',
      ],
      [
        'hides bytes in the metadata',
        (raw) =>
          raw.sayBytes(
            Buffer.concat([channelCodec.serialize({ chunk: { offset: 0 } }), unknownField(90_000)]),
            row,
          ),
        'INVALID_ARGUMENT',
        'metadata of the chunk at offset 0 is "900\\d\\d bytes"',
      ],
      [
        'says nothing',
        (raw) => raw.sayBytes(unknownField(3)),
        'INVALID_ARGUMENT',
        'kind of a channel message is "none"; allowed: chunk, credit',
      ],
      [
        'sends bytes that are no message',
        (raw) => raw.sayBytes(Buffer.from([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f])),
        'INVALID_ARGUMENT',
        'metadata of a UCX message is "6 other bytes"',
      ],
      [
        'gives no credit',
        (raw) => raw.say({ credit: { bytes: 0 } }),
        'INVALID_ARGUMENT',
        'credit.bytes is 0',
      ],
      [
        'gives credit for what it was not sent',
        (raw) => raw.say({ credit: { bytes: 1 } }),
        'INVALID_ARGUMENT',
        'credit.bytes is 1; allowed: 1 to 0, the bytes outstanding',
      ],
      [
        'sends part of a row',
        (raw) => raw.say({ chunk: { offset: 0 } }, row.subarray(0, 100)),
        'INVALID_ARGUMENT',
        '"100 bytes"; allowed: whole tokens',
      ],
      [
        'sends no row',
        (raw) => raw.say({ chunk: { offset: 0 } }),
        'INVALID_ARGUMENT',
        '"0 bytes"; allowed: whole tokens',
      ],
      [
        'leaves a gap',
        (raw) => raw.say({ chunk: { offset: 1 } }, row),
        'INVALID_ARGUMENT',
        'chunk.offset is 1; allowed: 0',
      ],
      [
        'sends routing that nobody asked for',
        (raw) => raw.say({ chunk: { offset: 0, experts: Buffer.alloc(8) } }, row),
        'INVALID_ARGUMENT',
        'chunk.experts at offset 0 is "8 bytes"',
      ],
      [
        'sends a chunk on the stream after one on the channel',
        async (raw) => {
          raw.say({ chunk: { offset: 0 } }, row);
          await raw.until(2);
          raw.call.write({ chunk: { offset: 1, rows: row } });
        },
        'INVALID_ARGUMENT',
        'message on the stream is "a chunk"; allowed: half-close',
      ],
      [
        'half-closes before its last row',
        (raw) => {
          raw.say({ chunk: { offset: 0 } }, row);
          raw.call.end();
        },
        'INVALID_ARGUMENT',
        'tokens received is [01]; allowed: the 64 tokens',
      ],
      [
        'sends a second header',
        (raw) => raw.call.write(header({ length: total })),
        'INVALID_ARGUMENT',
        'is "header"; allowed: a chunk',
      ],
    ];
    for (const [what, breach, code, text] of cases) {
      const raw = await RawChannel.open(router);
      await breach(raw);
      const error = await soon(raw.error, what);
      expect([what, error.code, error.message]).toEqual([
        what,
        expect.stringMatching(code),
        expect.stringMatching(text),
      ]);
      raw.channel.close();
    }
    await untilIdle(router);
    const again = await forward(router, await rows, off);
    expect(again.rows.equals(good.rows)).toBe(true);
  });

  test('gets no chunk in before the router gave it credit', async () => {
    const { routers } = await startCluster();
    const raw = await RawChannel.open(routers[0]!, { say: false });
    raw.say({ chunk: { offset: 0 } }, await one());
    expect(await raw.error).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message: expect.stringContaining('allowed: 0, the credit that is left'),
    });
    raw.channel.close();
    await untilIdle(routers[0]!);
  });

  test('is refused for a key of another length', async () => {
    const { routers } = await startCluster();
    const call = clientOf(routers[0]!).Forward();
    const end = { address: Buffer.from(fabric().address()), channel: 1 };
    const failure = new Promise((resolve) => call.once('error', (error) => resolve(fromServiceError(error))));
    call.write(header({ length: 1, ...off, ucx: end, ucxKey: Buffer.alloc(15) }));
    call.resume();
    expect(await failure).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: 'ucx_key is "15 bytes"; allowed: 16 bytes',
    });
  });

  test('is not heard with another key, and may send its chunks over gRPC', async () => {
    const { routers } = await startCluster();
    const router = routers[0]!;
    const expected = await forward(router, await rows, off);
    const refused = native.ucx!.stats().messagesRefused;
    const raw = await RawChannel.open(router, { say: false });
    const wrong = fabric().openChannel({
      key: randomBytes(16),
      messageBytesMax: 1 << 20,
      inboxBytesMax: 1 << 24,
    });
    const { address, channel } = raw.welcomeEnd;
    await wrong.connect(address, channel);
    const slab = native.allocateSlab(1, 4096);
    await wrong.send(slab, 0, channelCodec.serialize({ credit: { bytes: 1000 } }));
    slab.release();
    while (native.ucx!.stats().messagesRefused === refused) await sleep(5);
    expect(raw.received).toEqual([]);
    const answer = new Promise<Buffer>((resolve) =>
      raw.call.once('data', ({ chunk }) => resolve(chunk!.rows)),
    );
    raw.call.write({ chunk: { offset: 0, rows: await rows } });
    raw.call.end();
    expect((await answer).equals(expected.rows)).toBe(true);
    wrong.close();
    raw.channel.close();
    await untilIdle(router);
  });

  test('is not heard after its batch has ended', async () => {
    const { routers } = await startCluster();
    const router = routers[0]!;
    const raw = await RawChannel.open(router);
    const ended = new Promise((resolve) => raw.call.once('end', resolve));
    raw.say({ chunk: { offset: 0 } }, await rows);
    await raw.until(3);
    expect(raw.received.map(({ kind }) => kind).sort()).toEqual(['chunk', 'credit', 'credit']);
    raw.say({ credit: { bytes: total * rowBytes } });
    raw.call.end();
    raw.call.resume();
    await ended;
    await untilIdle(router);
    // Its own end knows that the router has closed the channel, or the router refuses the message.
    raw.say({ chunk: { offset: 0 } }, await rows);
    raw.channel.close();
    expect((await forward(router, await rows, off)).summary.tokens).toBe(total);
  });

  test('ends with CLIENT_STALLED if it gives no credit back for answers', async () => {
    const { routers } = await startCluster({ router: { clientStallMs: 500 } });
    const raw = await RawChannel.open(routers[0]!);
    raw.say({ chunk: { offset: 0 } }, await rows);
    raw.call.end();
    expect(await raw.error).toMatchObject({ code: 'CLIENT_STALLED' });
    raw.channel.close();
    await untilIdle(routers[0]!);
  });

  test('gets answers no larger than half of its credit, and an error if that is less than a row', async () => {
    const { routers } = await startCluster();
    const small = await RawChannel.open(routers[0]!, { creditBytes: 16 * rowBytes * 2 });
    small.say({ chunk: { offset: 0 } }, await rows);
    await small.until(3);
    expect(small.received[1]!.kind).toBe('credit');
    small.call.cancel();
    small.channel.close();
    const tiny = await RawChannel.open(routers[0]!, { creditBytes: 100 });
    tiny.say({ chunk: { offset: 0 } }, await rows);
    expect(await tiny.error).toMatchObject({
      code: 'TOO_LARGE',
      message: expect.stringContaining('at most 100'),
    });
    tiny.channel.close();
    await untilIdle(routers[0]!);
  });
});

/** As `promise`, or fails by name: a breach that is not refused would only time out. */
function soon<T>(promise: Promise<T>, what: string): Promise<T> {
  const late = new Promise<never>((_, reject) => {
    setTimeout(() => reject(new Error(`nothing came of a client that ${what}`)), 10_000).unref();
  });
  return Promise.race([promise, late]);
}

/** Bytes that protobuf skips: a field that no message has. */
function unknownField(bytes: number): Buffer {
  const head = [(1000 << 3) | 2].flatMap((tag) => [(tag & 0x7f) | 0x80, tag >> 7]);
  const length = [(bytes & 0x7f) | 0x80, ((bytes >> 7) & 0x7f) | 0x80, bytes >> 14];
  return Buffer.concat([Buffer.from([...head, ...length]), Buffer.alloc(bytes)]);
}
