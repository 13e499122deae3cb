import type { Readable } from 'node:stream';
import { afterEach, describe, expect, test } from '@jest/globals';
import { BatchEnd } from '../../services/client/batch-end.js';
import { type RowsReader, SwitchyardClient } from '../../services/client/index.js';
import { RouterSession } from '../../services/client/router-session.js';
import { UnreachableByUcx } from '../../services/client/ucx.js';
import { overEachTransport, rowBytes, shape, startCluster, tokens, untilIdle } from '../router/cluster.js';

const { hidden } = shape;
const clients: SwitchyardClient[] = [];

afterEach(() => {
  for (const client of clients.splice(0)) client.destroy();
});

/** Many times what the windows and buffers between a client and its router hold. */
async function large(): Promise<RowsReader> {
  const block = await tokens(100);
  const read = (_: number, rows: number) => Buffer.alloc(rows * rowBytes, block);
  return { tokens: 2_000_000, hidden, read };
}

overEachTransport((transport) => {
  describe('a batch whose client takes no answers', () => {
    test('ends with CLIENT_STALLED for whoever waits for it', async () => {
      const { routers } = await startCluster({ router: { clientStallMs: 2_000 } });
      const client = await SwitchyardClient.connect(routers[0]!.address, { transport });
      clients.push(client);
      await client.waitUntilReady(30_000);
      const call = await client.forward(await large(), { feedback: false });
      const answers = call[Symbol.asyncIterator]();
      await answers.next();
      const stalled = { code: 'CLIENT_STALLED', message: expect.stringContaining('clientStallMs') };
      await expect(call.summary).rejects.toMatchObject(stalled);
      // It may have a few answers still.
      const rest = async () => {
        while (!(await answers.next()).done);
      };
      await expect(rest()).rejects.toMatchObject(stalled);
      await untilIdle(routers[0]!);
    });
  });
});

test('a session whose client takes no answers ends with CLIENT_STALLED, and so do its batches', async () => {
  const { routers } = await startCluster({ router: { clientStallMs: 2_000 } });
  const session = new RouterSession({
    router: routers[0]!.address,
    name: 'router-0',
    credential: { token: null, tls: null },
    transport: 'grpc',
    unreachable: new UnreachableByUcx(),
    others: false,
  });
  await session.opened;
  // As of a process that does nothing else for so long.
  (session as unknown as { call: Readable }).call.pause();
  const rows = await tokens(1024);
  const header = {
    sequences: 1,
    length: 1024,
    hidden,
    dtype: 'BF16',
    options: { feedback: 'OFF', returnRouting: true },
  } as const;
  const send = () => session.send({ header, rows, routing: {} }, new BatchEnd());
  const batches = Array.from({ length: 64 }, send);
  const stalled = { code: 'CLIENT_STALLED', message: expect.stringContaining('clientStallMs') };
  await expect(batches.at(-1)).rejects.toMatchObject(stalled);
  await Promise.allSettled(batches);
  expect(session.failure).toMatchObject(stalled);
  await untilIdle(routers[0]!);
});
