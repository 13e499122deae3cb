import { spawnSync } from 'node:child_process';
import { beforeAll, expect, jest, test } from '@jest/globals';
import { parseMetrics } from '../../services/cli/node-metrics.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

jest.setTimeout(120_000);

const hidden = 256;
const tokens = 1200;
const pairs = tokens * 2 * 2;
let cluster: TestCluster;
/** Text of /metrics by process, after one batch. */
const texts = new Map<string, string>();

beforeAll(async () => {
  cluster = await startCluster({ workers: 2, routers: 1 });
  const call = await cluster.client.forward(testRows(tokens, hidden), { sequences: 12 });
  await call.collect();
  for (const process of cluster.processes) {
    const { metricsUrl } = await process.listening;
    texts.set(process.name, await (await fetch(`${metricsUrl}/metrics`)).text());
  }
});

const sumOver = (names: string[], metric: string) =>
  names.reduce((sum, name) => sum + (parseMetrics(texts.get(name)!).get(metric) ?? Number.NaN), 0);

test('count every token once at the routers and every (token, expert) pair once at the workers', () => {
  expect(sumOver(['coordinator', 'router-0'], 'switchyard_tokens_total')).toBe(tokens);
  expect(sumOver(['worker-0', 'worker-1'], 'switchyard_computed_rows_total')).toBe(pairs);
  for (const worker of ['worker-0', 'worker-1']) {
    expect(sumOver([worker], 'switchyard_compute_seconds_total')).toBeGreaterThan(0);
  }
});

test('of every process tell how busy its event loop is', () => {
  for (const name of texts.keys()) {
    const share = sumOver([name], 'switchyard_event_loop_utilization');
    expect(share).toBeGreaterThan(0);
    expect(share).toBeLessThanOrEqual(1);
  }
});

const promtool = spawnSync('promtool', ['--version']).status === 0;

(promtool ? test : test.skip)('pass promtool check metrics', () => {
  for (const [name, input] of texts) {
    const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
      input,
      encoding: 'utf8',
    });
    expect({ name, status, said: `${stdout}${stderr}` }).toEqual({ name, status: 0, said: '' });
  }
});

test('stand beside probes that follow the state of the cluster', async () => {
  const probe = async (path: string) => (await fetch(`${cluster.metricsUrl}${path}`)).status;
  expect(await probe('/healthz')).toBe(200);
  expect(await probe('/readyz')).toBe(200);
  await cluster.kill('worker-0');
  const end = performance.now() + 5_000;
  while ((await probe('/readyz')) === 200 && performance.now() < end);
  expect(await probe('/readyz')).toBe(503);
  expect(await probe('/healthz')).toBe(200);
});
