import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, expect, test } from '@jest/globals';
import { builtFile } from '../../native/locate.js';
import { forward, startCluster, tokens } from '../router/cluster.js';
import { healthOf } from '../support/health.js';
import { until } from '../support/until.js';
import { WorkerProcess } from '../support/worker-process.js';

const standstillMs = 1_000;
let directory: string | null = null;
const processes: WorkerProcess[] = [];

afterEach(async () => {
  await Promise.all(processes.splice(0).map((process) => process.kill()));
  if (directory !== null) await rm(directory, { recursive: true });
  directory = null;
});

async function healthz(metricsUrl: string): Promise<{ status: number; healthy: boolean; reason: string }> {
  const response = await fetch(`${metricsUrl}/healthz`);
  return { status: response.status, ...((await response.json()) as { healthy: boolean; reason: string }) };
}

test('a worker whose device hangs is not healthy and says what stands still; its router, which only waits, is', async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-liveness-'));
  const hung = join(directory, 'hung');
  const addon = pathToFileURL(builtFile('native', 'index.js'));
  const preload = `
    import { existsSync } from 'node:fs';
    import { setTimeout as sleep } from 'node:timers/promises';
    import { native } from '${addon}';
    const create = native.createCpuBackend;
    native.createCpuBackend = (options) => {
      const backend = create(options);
      return {
        description: backend.description,
        load: (source) => backend.load(source),
        forward: async (calls) => {
          while (existsSync('${hung}')) await sleep(10);
          return backend.forward(calls);
        },
        figures: () => backend.figures(),
        close: () => backend.close(),
      };
    };`;
  const process = new WorkerProcess(['--import', `data:text/javascript,${encodeURIComponent(preload)}`]);
  processes.push(process);
  const { coordinator, routers } = await startCluster({
    workers: 0,
    coordinator: { workers: 1 },
    router: { standstillMs },
  });
  const router = routers[0]!;
  const quiet = { port: 0, metricsPort: 0, logLevel: 'silent', threads: 1, standstillMs };
  const worker = await process.start({ ...quiet, name: 'worker-0', coordinator: coordinator.address });
  const rows = await tokens(200);
  await forward(router, rows);
  const ok = { status: 200, healthy: true, reason: '' };
  expect(await healthz(worker.metricsUrl)).toEqual(ok);
  expect(await healthOf(worker.address, 'liveness')).toBe('SERVING');

  await writeFile(hung, '');
  const batch = forward(router, rows, { batchId: 'held' });
  const told = await until(
    () => healthz(worker.metricsUrl),
    ({ healthy }) => !healthy,
  );
  expect(told.status).toBe(503);
  expect(told.reason).toMatch(
    /^token batches stand still for \d+ ms: \d+ under way, the oldest of batch held, layer 0, from router router-0; allowed: 1000 ms, as standstillMs has it$/,
  );
  for (const service of ['liveness', '', 'switchyard.v1.Experts'])
    expect(await healthOf(worker.address, service)).toBe('NOT_SERVING');
  expect(await healthz(router.metricsUrl)).toEqual(ok);
  expect(await healthOf(router.address, 'liveness')).toBe('SERVING');

  await rm(hung);
  await batch;
  await until(
    () => healthz(worker.metricsUrl),
    ({ healthy }) => healthy,
  );
  for (const service of ['liveness', '', 'switchyard.v1.Experts'])
    expect(await healthOf(worker.address, service)).toBe('SERVING');
});
