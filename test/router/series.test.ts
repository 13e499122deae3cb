import { describe, expect, test } from '@jest/globals';
import { parseMetrics } from '../../services/cli/node-metrics.js';
import { SwitchyardClient } from '../../services/client/index.js';
import type { Running } from '../../services/common/lifecycle.js';
import { WorkerLoad } from '../../services/router/balancedness.js';
import { routerSchema } from '../../services/router/config.js';
import { startRouter } from '../../services/router/main.js';
import { workerSchema } from '../../services/worker/config.js';
import { startWorker } from '../../services/worker/main.js';
import { atEnd, start, stateOf } from '../coordinator/control-support.js';
import { tinyModel } from '../coordinator/support.js';
import { testRows } from '../support/rows.js';
import { until } from '../support/until.js';

const quiet = { port: 0, metricsPort: 0, logLevel: 'silent', threads: 1 } as const;

async function metricsOf({ metricsUrl }: Running): Promise<string> {
  return (await fetch(`${metricsUrl}/metrics`)).text();
}

/** Names of the workers that a router's series are of. */
async function workersIn(router: Running): Promise<string[]> {
  const names = [...(await metricsOf(router)).matchAll(/^switchyard_\w+\{.*worker="([^"]+)"/gm)].map(
    ([, name]) => name!,
  );
  return [...new Set(names)].sort();
}

test('the series of a worker end when it is no longer listed, and those of the others go on', async () => {
  const cluster = await start({ workers: 1, leaseMs: 3_000, leftKeptMs: 200, deadKeptMs: 200 });
  const coordinator = cluster.server.address;
  const worker = async (name: string) => {
    const running = await startWorker(workerSchema.parse({ ...quiet, coordinator, name, drainMs: 200 }));
    atEnd(() => running.stop('the test is over'));
    return running;
  };
  const first = await worker('first');
  await until(() => cluster.control.readiness().ready, Boolean);
  await worker('second');
  const router = await startRouter(
    routerSchema.parse({ ...quiet, threads: 2, coordinator, name: 'r', drainMs: 200 }),
  );
  atEnd(() => router.stop('the test is over'));
  const client = await SwitchyardClient.connect(router.address);
  atEnd(() => client.close());
  await client.waitUntilReady(20_000);
  const forward = async () => (await client.forward(testRows(32, tinyModel.hidden))).collect();
  await forward();
  expect(await workersIn(router)).toContain('first');
  const sent = (text: string) => parseMetrics(text).get('switchyard_link_messages_total') ?? 0;
  expect(sent(await metricsOf(router))).toBeGreaterThan(0);
  await first.stop('it is not needed any more');
  await until(() => cluster.control.readiness().ready, Boolean);
  await forward();
  await until(
    () => stateOf(cluster, 'first'),
    (state) => state === undefined,
  );
  expect(
    await until(
      () => workersIn(router),
      (names) => !names.includes('first'),
    ),
  ).toEqual(['second']);
  expect(sent(await metricsOf(router))).toBeGreaterThan(0);
});

describe('balancedness', () => {
  test('counts the workers that hold experts now, and none that did before', () => {
    const load = new WorkerLoad();
    load.add(0, { workers: ['a', 'b'], rows: Float64Array.of(4, 0) });
    load.add(0, { workers: ['c', 'd'], rows: Float64Array.of(4, 4) });
    expect(load.balancedness(0)).toBe(1);
  });
});
