import { expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import type { TransportKind } from '../../services/transport/link.js';
import { startCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

/** The preset `tiny`. */
const input = testRows(3_000, 256);

/** What a cluster whose links are all of one kind answers; proved by what it says of its links. */
async function answers(transport: TransportKind): Promise<Buffer[]> {
  const cluster = await startCluster({
    workers: 3,
    routers: 1,
    coordinator: { transport },
    router: { transport },
  });
  const rows: Buffer[] = [];
  for (const combine of ['exact', 'partial'] as const) {
    const call = await cluster.client.forward(input, {
      sequences: 6,
      feedback: false,
      combine,
      chunkTokens: 300,
    });
    rows.push(Buffer.from((await call.collect()).rows.buffer));
  }
  const kinds = (await cluster.links()).map((link) => link.transport.toLowerCase());
  expect(kinds).toEqual(new Array(6).fill(transport));
  await cluster.stop();
  return rows;
}

(native.ucx === null ? test.skip : test)('the answers over gRPC and over UCX are the same bits', async () => {
  const [overGrpc, overUcx] = [await answers('grpc'), await answers('ucx')];
  expect(overGrpc[0]!.byteLength).toBe(input.byteLength);
  // Not toEqual: it would compare and print millions of elements.
  expect(overUcx.map((rows, index) => rows.equals(overGrpc[index]!))).toEqual([true, true]);
});
