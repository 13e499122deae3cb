import { expect, test } from '@jest/globals';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { RouterMessage } from '../../services/common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessageInput } from '../../services/common/generated/switchyard/v1/WorkerMessage.js';
import { exchangeCodec } from '../../services/common/protocol.js';
import type { Duplex } from '../../services/runtime/duplex.js';
import { EventLog } from '../../services/simulator/event-log.js';
import { Network } from '../../services/simulator/network.js';
import { SeededRandom } from '../../services/simulator/random.js';
import { drawRates } from '../../services/simulator/rates.js';
import { VirtualTime } from '../../services/simulator/virtual-time.js';
import { simulatedProcess } from '../support/simulated.js';

const method = { name: 'Exchange', ...exchangeCodec };

function world() {
  const time = new VirtualTime();
  const random = new SeededRandom(7);
  const rates = { ...drawRates(random), latencyMs: 10, jitterMs: 5, streamWindowBytes: 1000 };
  const network = new Network({ time, random, rates, log: new EventLog(() => time.nowMs) });
  const process = (name: string) => simulatedProcess(name, { time, random });
  const [client, server] = [process('client'), process('server')];
  const accepted: { stream: Duplex<RouterMessage, WorkerMessageInput>; heard: string[] }[] = [];
  network.listen(server, 'server:1', method, (stream) => accepted.push({ stream, heard: heardBy(stream) }));
  const dial = (leaseMs = 60_000) => {
    const dialer = network.dialer(client, method);
    const stream = dialer('server:1', { authorization: null, messageBytesMax: 1000, leaseMs });
    return { stream, heard: heardBy(stream) };
  };
  const until = (ms: number) => time.run(ms, () => false);
  return { network, client, server, accepted, dial, until };
}

/** What an end hears. */
function heardBy<In>(stream: Duplex<In, never>): string[] {
  const heard: string[] = [];
  stream.listen({
    message: (message) => heard.push((message as unknown as RouterMessage).cancel!.batchId),
    end: () => heard.push('end'),
    fail: ({ code }: SwitchyardError) => heard.push(code),
  });
  return heard;
}

const say = (batchId: string) => ({ cancel: { batchId } });

test('Messages of a stream arrive whole and in order, also what was written before it stood, and then the end', async () => {
  const { dial, accepted, until } = world();
  const { stream } = dial();
  const texts = Array.from({ length: 50 }, (_, index) => `${index}`);
  for (const text of texts) stream.write(say(text));
  stream.end();
  await until(5_000);
  expect(accepted[0]!.heard).toEqual([...texts, 'end']);
});

test('A window that is full holds the writer back until the other end takes messages', async () => {
  const { dial, accepted, until } = world();
  const { stream } = dial();
  await until(100);
  accepted[0]!.stream.pause();
  let taken = 0;
  const writable = [1, 2, 3, 4, 5].map(() =>
    stream.write(say('x'.repeat(400)), () => {
      taken += 1;
    }),
  );
  expect(writable.at(-1)).toBe(false);
  await until(1_000);
  expect([accepted[0]!.heard.length, taken]).toEqual([0, 3]);
  accepted[0]!.stream.resume();
  await until(2_000);
  expect([accepted[0]!.heard.length, taken]).toEqual([5, 5]);
});

test('What travels while hosts do not hear each other arrives when they do; a lease that ran out breaks the stream', async () => {
  const { network, dial, accepted, until } = world();
  const { stream, heard } = dial(3_000);
  await until(100);
  network.cut('client', 'server');
  stream.write(say('late'));
  await until(2_000);
  expect(accepted[0]!.heard).toEqual([]);
  network.heal();
  await until(3_000);
  expect(accepted[0]!.heard).toEqual(['late']);
  network.cut('client', 'server');
  await until(7_000);
  expect(heard).toEqual(['LINK_LOST']);
});

test('A process that dies breaks its streams, and nobody answers at its address', async () => {
  const { network, server, dial, until } = world();
  const { heard } = dial();
  await until(100);
  server.kill();
  await until(1_000);
  expect(heard).toEqual(['LINK_LOST']);
  const again = dial();
  await until(2_000);
  expect(again.heard).toEqual(['LINK_LOST']);
  expect(network.open).toBe(0);
});

test('A process that stands still hears everything when it goes on: its timers first, then messages in order', async () => {
  const { server, dial, accepted, until } = world();
  const { stream } = dial();
  await until(100);
  const { heard } = accepted[0]!;
  server.stop();
  server.runtime.clock.after(50, () => heard.push('timer'));
  for (const text of ['a', 'b']) stream.write(say(text));
  await until(1_000);
  expect(heard).toEqual([]);
  server.resume();
  await until(1_001);
  expect(heard).toEqual(['timer', 'a', 'b']);
});
