import { afterEach, expect, test } from '@jest/globals';
import { SwitchyardClient } from '../../services/client/index.js';
import type { Running } from '../../services/common/lifecycle.js';
import { Watchers } from '../../services/common/watchers.js';
import type { TransportKind } from '../../services/transport/link.js';
import {
  callOf,
  header,
  overEachTransport,
  rowBytes,
  startCluster,
  stateOf,
  tokens,
} from '../router/cluster.js';
import { until } from '../support/until.js';
import { serveWatch } from '../support/watch-server.js';

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** A client to which all of these routers are ready, whatever they say themselves: news takes its time. */
async function clientOfAll(routers: readonly Running[], transport: TransportKind): Promise<SwitchyardClient> {
  const node = { host: '', state: 'READY', messageBytesMax: 1024 * 1024 } as const;
  const told = routers.map(({ address }, index) => ({ ...node, name: `router-${index}`, address }));
  const watchers = new Watchers(() => ({ routers: told, model: { hidden: rowBytes / 2 }, ready: true }));
  const server = await serveWatch(watchers);
  const client = await SwitchyardClient.connect(server.address, { transport });
  cleanups.push(
    () => server.close(0),
    () => client.destroy(),
  );
  return client;
}

/** Does `work` while routers that were told to stop do not yet: each has a batch under way. */
async function whileEnding(routers: readonly Running[], work: () => Promise<void>): Promise<void> {
  const calls = routers.map((router) => callOf(router));
  try {
    for (const call of calls) {
      call.on('error', () => {});
      call.write(header({ length: 2 }));
    }
    for (const router of routers)
      await until(
        () => stateOf(router),
        ({ batches }) => batches === 1,
      );
    for (const router of routers) void router.stop('the test wants it');
    await work();
  } finally {
    for (const call of calls) call.cancel();
  }
}

async function* pieces(rows: Buffer, count: number) {
  for (let at = 0; at < rows.length; at += rows.length / count)
    yield rows.subarray(at, at + rows.length / count);
}

overEachTransport((transport) => {
  const off = { feedback: false };
  const drainMs = { router: { drainMs: 60_000 } };

  test('what routers that end refuse goes to one that does not, whole', async () => {
    const { routers } = await startCluster({ routers: 3, ...drainMs });
    const client = await clientOfAll(routers, transport);
    const rows = await tokens(3_000);
    const few = rows.subarray(0, 12 * rowBytes);
    const expected = (await (await client.forward(rows, off)).collect()).rows;
    const session = client.session();
    const names = new Set<string>();
    await whileEnding(routers.slice(0, 2), async () => {
      for (let turn = 0; turn < 3; turn += 1) {
        const calls = [
          await client.forward(rows, { ...off, sequences: 3 }),
          await client.forward(pieces(rows, 5), { ...off, sequences: 3, length: 1_000, deadlineMs: 60_000 }),
          await client.forward(few, { ...off, sequences: 3 }),
        ];
        for (const call of calls) {
          const { rows: answers, summary } = await call.collect();
          expect(Buffer.compare(answers, expected.subarray(0, answers.length))).toBe(0);
          for (const { name } of summary.routers) names.add(name);
        }
        const { rows: answers } = await session.forward(few, off);
        expect(Buffer.compare(answers, expected.subarray(0, answers.length))).toBe(0);
      }
    });
    expect([...names]).toEqual(['router-2']);
  });

  test.each([1, 2])(
    'what no router of %d takes ends with the name of each, and no row was read',
    async (count) => {
      const { routers } = await startCluster({ routers: count, ...drainMs });
      const client = await clientOfAll(routers, transport);
      let reads = 0;
      const input = {
        tokens: 3_000,
        hidden: rowBytes / 2,
        read: async (_: number, count: number) => {
          reads += 1;
          return new Uint8Array(count * rowBytes);
        },
      };
      const names = routers.map((_, index) => `router router-${index} is stopping: the test wants it`);
      const refusal = {
        code: 'DRAINING',
        message:
          count === 1 ? names[0] : expect.stringMatching(new RegExp(`(?=.*${names[0]})(?=.*${names[1]})`)),
      };
      await whileEnding(routers, async () => {
        await expect((await client.forward(input, off)).collect()).rejects.toMatchObject(refusal);
        await expect(client.session().forward(new Uint8Array(rowBytes))).rejects.toMatchObject(refusal);
      });
      expect(reads).toBe(0);
    },
  );
});
