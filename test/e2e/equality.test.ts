import { beforeAll, describe, expect, test } from '@jest/globals';
import type { ForwardOptions, RoutingRows, SwitchyardClient } from '../../services/client/index.js';
import { startCluster, type TestClusterOptions } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

/** The preset `tiny`. */
const hidden = 256;
const layers = 2;
const topK = 2;
const sequences = 9;
const length = 500;
const tokens = sequences * length;
const input = testRows(tokens, hidden);

async function forward(client: SwitchyardClient, options: ForwardOptions = {}): Promise<Buffer> {
  const call = await client.forward(input, { sequences, feedback: false, ...options });
  const { rows, summary } = await call.collect();
  expect(summary.tokens).toBe(tokens);
  expect(summary.assignments).toBe(tokens * layers * topK);
  return Buffer.from(rows.buffer);
}

/** Starts a cluster for the time of `work`. */
async function withCluster<T>(
  options: TestClusterOptions,
  work: (client: SwitchyardClient) => Promise<T>,
): Promise<T> {
  const cluster = await startCluster(options);
  try {
    return await work(cluster.client);
  } finally {
    await cluster.stop();
  }
}

const expected = withCluster({ workers: 1 }, (client) => forward(client));
expected.catch(() => {});

async function expectEqual(rows: Buffer): Promise<void> {
  // Not toEqual: it would compare and print millions of elements.
  expect(rows.equals(await expected)).toBe(true);
}

describe('with feedback off the answers are the same to the bit', () => {
  test.each([
    { workers: 2, routers: 0 },
    { workers: 8, routers: 2 },
  ])('for $workers workers and $routers routers beside the embedded one', async (size) => {
    await withCluster(size, async (client) => expectEqual(await forward(client)));
  });

  describe('for 3 workers and 2 routers beside the embedded one', () => {
    let client: SwitchyardClient;
    beforeAll(async () => {
      ({ client } = await startCluster({ workers: 3, routers: 2 }));
    });

    test('and any size of chunks, way of input, number of routers, and company', async () => {
      await expectEqual(await forward(client, { chunkTokens: 256 }));
      await expectEqual(await forward(client, { chunkTokens: 4096, routers: 1 }));
      async function* pieces() {
        for (let from = 0; from < input.length; from += 70_001) yield input.subarray(from, from + 70_001);
      }
      const streamed = await client.forward(pieces(), { sequences, length, feedback: false });
      await expectEqual(Buffer.from((await streamed.collect()).rows.buffer));
      const company = [1, 2, 3].map(() => forward(client, { chunkTokens: 64 }));
      await expectEqual(await forward(client));
      for (const other of company) await expectEqual(await other);
    });

    test('and the experts and weights that the gate chose, given back to it', async () => {
      const perToken = layers * topK;
      const routing = {
        experts: new Uint32Array(tokens * perToken),
        weights: new Float32Array(tokens * perToken),
      };
      const gated = await client.forward(input, { sequences, feedback: false, returnRouting: true });
      for await (const chunk of gated) {
        routing.experts.set(chunk.routing!.experts, chunk.first * perToken);
        routing.weights.set(chunk.routing!.weights, chunk.first * perToken);
      }
      const given = (first: number, count: number): RoutingRows => ({
        experts: routing.experts.subarray(first * perToken, (first + count) * perToken),
        weights: routing.weights.subarray(first * perToken, (first + count) * perToken),
      });
      await expectEqual(await forward(client, { given }));
    });
  });
});
