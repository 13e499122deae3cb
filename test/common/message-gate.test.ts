import type { ServerDuplexStream } from '@grpc/grpc-js';
import { describe, expect, test } from '@jest/globals';
import { connect } from '../../services/common/grpc-channel.js';
import { gateOf } from '../../services/common/message-gate.js';
import { clients } from '../../services/common/protocol.js';
import { ByteBudget } from '../../services/router/budget.js';
import { atEnd, inference, messageBytesMax, serve } from './support.js';

type Call = ServerDuplexStream<{ chunk: { rows: Buffer } }, object>;

const bytes = 600 * 1024;

async function until(check: () => boolean): Promise<void> {
  while (!check()) await new Promise((resolve) => setTimeout(resolve, 5));
}

/** A server whose clients' messages have room for one of them, and `count` clients that send one each. */
async function sendTo(count: number) {
  const room = new ByteBudget(1024 * 1024);
  const here: Call[] = [];
  const read = (call: Call) => call.on('data', () => here.push(call)).on('error', () => {});
  const { address } = await serve({ services: [{ ...inference('m', read), messageRoom: room }] });
  const calls = Array.from({ length: count }, () => {
    const client = connect(clients.Inference, address, { token: null, messageBytesMax });
    atEnd(() => client.close());
    const call = client.Forward();
    call.on('error', () => {}).resume();
    call.write({ chunk: { rows: Buffer.alloc(bytes) } });
    return call;
  });
  return { room, here, calls };
}

describe('a message that is long', () => {
  test('comes in when there is room, which it has until it is taken', async () => {
    const { room, here } = await sendTo(5);
    for (let arrived = 1; arrived <= 5; arrived += 1) {
      await until(() => here.length === arrived && room.waiting === 5 - arrived);
      expect(room.used).toBeGreaterThanOrEqual(bytes);
      expect(gateOf(here.at(-1)!)!.waiting).toBe(false);
      gateOf(here.at(-1)!)!.claim()();
    }
    expect(room.used).toBe(0);
  });

  test('gives its room back with its call, wherever it is', async () => {
    const { room, here, calls } = await sendTo(4);
    await until(() => here.length === 1 && room.waiting === 3);
    for (const call of calls) call.cancel();
    await until(() => room.used === 0 && room.waiting === 0);
  });
});

test('those of one connection leave room for those of others', async () => {
  const room = new ByteBudget(4 * 1024 * 1024);
  const sizes: number[] = [];
  const read = (call: Call) =>
    call
      .on('data', ({ chunk }: { chunk: { rows: Buffer } }) => sizes.push(chunk.rows.byteLength))
      .on('error', () => {});
  const { address } = await serve({ services: [{ ...inference('m', read), messageRoom: room }] });
  const client = () => {
    const made = connect(clients.Inference, address, { token: null, messageBytesMax });
    atEnd(() => made.close());
    return made;
  };
  const send = (by: ReturnType<typeof client>, length: number) => {
    const call = by.Forward();
    call.on('error', () => {}).resume();
    call.write({ chunk: { rows: Buffer.alloc(length) } });
  };
  const greedy = client();
  for (let index = 0; index < 20; index += 1) send(greedy, bytes);
  await until(() => sizes.length === 3 && room.waiting === 17);
  send(client(), 100_000);
  await until(() => sizes.includes(100_000));
  expect(sizes.filter((size) => size === bytes)).toHaveLength(3);
});

test('short messages come in without', async () => {
  const room = new ByteBudget(1);
  let seen = 0;
  const read = (call: Call) =>
    call.on('data', () => {
      seen += 1;
      gateOf(call)!.claim()();
    });
  const { address } = await serve({ services: [{ ...inference('m', read), messageRoom: room }] });
  const client = connect(clients.Inference, address, { token: null, messageBytesMax });
  atEnd(() => client.close());
  const call = client.Forward();
  call.on('error', () => {}).resume();
  for (let index = 0; index < 100; index += 1) call.write({ chunk: { rows: Buffer.alloc(100) } });
  await until(() => seen === 100);
  expect(room.used).toBe(0);
});
