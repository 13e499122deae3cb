import { readFileSync } from 'node:fs';
import { type ClientHttp2Stream, connect, constants } from 'node:http2';
import { afterAll, expect, jest, test } from '@jest/globals';
import type { ForwardRequestInput } from '../../services/common/generated/switchyard/v1/ForwardRequest.js';
import { sleep } from '../../services/common/lifecycle.js';
import { services } from '../../services/common/protocol.js';
import { startCluster } from '../support/cluster.js';

jest.setTimeout(240_000);

const mebibyte = 1024 * 1024;
/** The preset `tiny`. */
const hidden = 256;
const sessions: ReturnType<typeof connect>[] = [];

afterAll(() => {
  for (const session of sessions) session.destroy();
});

/** A message as gRPC has it on HTTP/2. */
function framed(request: ForwardRequestInput): Buffer {
  const message = services.Inference.Forward.requestSerialize(request as never) as Buffer;
  const frame = Buffer.alloc(5 + message.byteLength);
  frame.writeUInt32BE(message.byteLength, 1);
  // It may have its rows beside it: it knows how to put itself together.
  message.copy(frame, 5);
  return frame;
}

test('messages of 16 MiB on 200 streams at once come in as there is room, in no more memory than is stated', async () => {
  const budgetBytes = 64 * mebibyte;
  const cluster = await startCluster({
    workers: 1,
    coordinator: { budgetBytes, transport: 'grpc', clientStallMs: 1_000 },
    worker: { transport: 'grpc' },
  });
  const { pid } = cluster.process('coordinator');
  const residentBytes = () =>
    1024 * Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]);
  const state = async () => {
    const { router } = (await (await fetch(`${cluster.metricsUrl}/state`)).json()) as {
      router: { batches: number; messages: { bytes: number; used: number; waiting: number } };
    };
    return router;
  };
  const header = framed({
    header: { sequences: 1, length: 1_000_000, hidden, dtype: 'BF16', options: { feedback: 'OFF' } },
  });
  const rows = framed({ chunk: { offset: 0, rows: Buffer.alloc(16 * mebibyte) } });
  const before = residentBytes();
  let peak = before;
  const sampling = setInterval(() => {
    peak = Math.max(peak, residentBytes());
  }, 20);

  const cut: ClientHttp2Stream[] = [];
  for (let connection = 0; connection < 4; connection += 1) {
    const session = connect(`http://${cluster.address}`, { maxSessionMemory: 4_000 });
    session.on('error', () => {});
    sessions.push(session);
    for (let index = 0; index < 50; index += 1) {
      const stream = session.request({
        ':method': 'POST',
        ':path': services.Inference.Forward.path,
        'content-type': 'application/grpc',
        te: 'trailers',
      });
      // Nobody reads the answers, so their batches stall.
      stream.on('error', () => {}).on('response', () => {});
      stream.once('close', () => {
        if (stream.rstCode === constants.NGHTTP2_ENHANCE_YOUR_CALM) cut.push(stream);
      });
      stream.write(header);
      stream.write(rows);
    }
  }
  const seen = await until(state, ({ messages }) => messages.waiting > 0);
  expect(seen.messages.used).toBeLessThanOrEqual(seen.messages.bytes);
  // What nobody reads of a batch that has stalled goes with its stream.
  await until(
    async () => cut.length,
    (count) => count >= 4,
    60_000,
  );
  clearInterval(sampling);
  for (const session of sessions) session.destroy();
  await until(state, ({ batches, messages }) => batches === 0 && messages.used === 0);
  // Chunks; messages, and once more while one is put together; windows; and what V8 has not collected.
  const stated = budgetBytes + 2 * seen.messages.bytes + 200 * 64 * 1024 + 160 * mebibyte;
  expect(peak - before).toBeLessThan(stated);
});

async function until<T>(read: () => Promise<T>, check: (value: T) => boolean, withinMs = 30_000): Promise<T> {
  const end = performance.now() + withinMs;
  for (;;) {
    const value = await read();
    if (check(value)) return value;
    if (performance.now() > end) throw new Error(`not within ${withinMs} ms; last: ${JSON.stringify(value)}`);
    await sleep(20);
  }
}
