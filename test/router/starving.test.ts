import { describe, expect, test } from '@jest/globals';
import { sleep } from '../../services/common/lifecycle.js';
import { fromServiceError } from '../../services/common/status.js';
import { until } from '../support/until.js';
import {
  addWorker,
  type Call,
  callOf,
  clientOf,
  forward,
  header,
  outcomeOf,
  overEachTransport,
  sendChunks,
  startCluster,
  stateOf,
  tokens,
  untilIdle,
} from './cluster.js';

const off = { options: { feedback: 'OFF' } } as const;

const failureOf = (call: Call) =>
  new Promise<ReturnType<typeof fromServiceError>>((resolve) => {
    call.once('error', (error) => resolve(fromServiceError(error)));
    call.resume();
  });

overEachTransport(() => {
  describe('a client that leaves its batch idle', () => {
    test('after the header, or between rows, is ended by clientStallMs', async () => {
      const { routers } = await startCluster({ router: { clientStallMs: 400 } });
      const rows = await tokens(10);
      const silent = callOf(routers[0]!);
      const headerOnly = callOf(routers[0]!);
      const paused = callOf(routers[0]!);
      const failures = [failureOf(silent), failureOf(headerOnly), failureOf(paused)];
      headerOnly.write(header({ length: 20, ...off }));
      paused.write(header({ length: 20, ...off }));
      await sendChunks(paused, rows, 0, 10, 10);
      const missing = ['a header', 'rows from token 0 on, of the 20', 'rows from token 10 on, of the 20'];
      for (const [index, failure] of failures.entries()) {
        const message = expect.stringMatching(`clientStallMs.*missing: ${missing[index]}`);
        expect(await failure).toMatchObject({ code: 'CLIENT_STALLED', message });
      }
      await untilIdle(routers[0]!);
    });

    test('may do so while the cluster is not ready', async () => {
      const cluster = await startCluster({
        workers: 0,
        coordinator: { workers: 1 },
        router: { clientStallMs: 1_000 },
      });
      const rows = await tokens(5);
      const call = callOf(cluster.routers[0]!);
      const outcome = outcomeOf(call, 5);
      outcome.catch(() => {});
      call.write(header({ length: 5, ...off }));
      await sleep(2_000);
      expect((await stateOf(cluster.routers[0]!)).batches).toBe(1);
      await addWorker(cluster, 'late');
      await sendChunks(call, rows, 0, 5, 5);
      call.end();
      expect((await outcome).summary.tokens).toBe(5);
    });
  });
});

describe('a connection', () => {
  test('with many batches under way leaves some to others, and is told so by name and number', async () => {
    const { routers } = await startCluster({ router: { batchesMax: 6 } });
    const router = routers[0]!;
    const greedy = clientOf(router);
    const held = Array.from({ length: 3 }, () => greedy.Forward());
    for (const call of held) {
      call.on('error', () => {}).write(header({ length: 10, ...off }));
    }
    await until(
      () => stateOf(router),
      ({ batches }) => batches === 3,
    );
    const refused = greedy.Forward();
    const failure = failureOf(refused as unknown as Call);
    refused.write(header({ length: 10, ...off }));
    expect(await failure).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message:
        '3 batches are under way at router router-0, 3 of them of this connection; ' +
        'allowed: 6, as batchesMax has it, and one more for a connection that has fewer than are free',
      details: { batches: 3, ofConnection: 3, free: 3, allowed: 6 },
    });
    const rows = await tokens(10);
    expect((await forward(router, rows, off)).summary.tokens).toBe(10);
    for (const call of held) call.cancel();
    await untilIdle(router);
  });
});
