import { beforeAll, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { SwitchyardClient, type SwitchyardError } from '../../services/client/index.js';
import type { TransportKind } from '../../services/transport/link.js';
import { startCluster, type TestCluster } from '../support/cluster.js';

/** Links and clients alike, as Jest's configuration has it. */
declare const transport: TransportKind;

/** The preset `tiny`. */
const hidden = 256;
const rowsOf = (tokens: number) => new Uint8Array(new Uint16Array(tokens * hidden).fill(0x3f80).buffer);

let cluster: TestCluster;

beforeAll(async () => {
  cluster = await startCluster({ coordinator: { transport }, worker: { transport } });
});

/** `count` batches at once over connections of their own clients, each by `transport` or not at all. */
async function batchesAtOnce(on: TestCluster, count: number, tokens: number, chunkTokens: number) {
  const clients = await Promise.all(
    Array.from({ length: 4 }, () => SwitchyardClient.connect(on.address, { transport })),
  );
  try {
    const rows = rowsOf(tokens);
    return await Promise.allSettled(
      Array.from({ length: count }, async (_, index) => {
        const client = clients[index % clients.length]!;
        const call = await client.forward(rows, { feedback: false, chunkTokens });
        return (await call.collect()).summary;
      }),
    );
  } finally {
    for (const client of clients) client.close();
  }
}

const reasons = (outcomes: PromiseSettledResult<unknown>[]) =>
  outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? [outcome.reason as SwitchyardError] : []));

describe('128 batches at once', () => {
  test('all complete by the transport that they ask for', async () => {
    const outcomes = await batchesAtOnce(cluster, 128, 512, 0);
    expect(reasons(outcomes)).toEqual([]);
    for (const outcome of outcomes) {
      if (outcome.status !== 'fulfilled') continue;
      expect(outcome.value.routers.map((router) => router.transport)).toEqual([transport]);
    }
  });

  test('with a chunk for every token all complete: no number of operations is too many', async () => {
    expect(reasons(await batchesAtOnce(cluster, 128, 64, 1))).toEqual([]);
  });
});

(native.ucx !== null && transport === 'ucx' ? describe : describe.skip)('more batches than windows', () => {
  test('are told which setting bounds them, and by how much', async () => {
    const small = await startCluster({ coordinator: { budgetBytes: '4MiB' }, workers: 1 });
    const errors = reasons(await batchesAtOnce(small, 40, 4_096, 0));
    expect(errors.length).toBeGreaterThan(0);
    for (const { code, message } of errors) {
      expect(code).toBe('LINK_LOST');
      expect(message).toMatch(
        /no window is left: \d+ batches share 1048576 bytes, a quarter of the router's budgetBytes, and \d+ of them are free/,
      );
    }
    expect(errors.length).toBeLessThan(40);
  });
});
