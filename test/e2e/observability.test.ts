import { spawnSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { type NodeMetrics, parseMetrics, readMetrics } from '../../services/cli/node-metrics.js';
import type { RowsReader } from '../../services/client/index.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

/** The preset `tiny`. */
const hidden = 256;
const layers = [0, 1];
const expertNumbers = [0, 1, 2, 3, 4, 5, 6, 7];
const topK = 2;
const tokens = 2_000;
const names = ['coordinator', 'router-0', 'worker-0'];
/** What carries token batches in this run, see jest.config.js. */
const transport = process.env.SWITCHYARD_TRANSPORT!;

/** As many rows as a client may ask for at a time, 8 MiB; made early, for servers close connections that a busy client leaves idle. */
const block = testRows(2 ** 22 / hidden, hidden);

let cluster: TestCluster;

const metricsUrl = async (name: string) => (await cluster.process(name).listening).metricsUrl;
const exposition = async (name: string, path = '/metrics') =>
  (await fetch(`${await metricsUrl(name)}${path}`)).text();
const metrics = async (name: string) => readMetrics(await metricsUrl(name));
const experts = async (name: string) => parseMetrics(await exposition(name, '/metrics/experts'));

/** Both routers and the worker get their part of a batch; feedback is on, so that there is a bias. */
beforeAll(async () => {
  cluster = await startCluster({ workers: 1, routers: 1, coordinator: { feedback: true } });
  const call = await cluster.client.forward(testRows(tokens, hidden), { sequences: 4, chunkTokens: 250 });
  const { summary } = await call.collect();
  expect(summary.routers.map((router) => router.tokens)).toEqual([tokens / 2, tokens / 2]);
});

describe('promtool', () => {
  const present = spawnSync('promtool', ['--version']).error === undefined;
  if (!present) {
    process.stderr.write(
      '\n*** NOT CHECKED: promtool is not in PATH, so no metrics are checked by it. ***\n\n',
    );
  }
  const all = names.flatMap((name) => ['/metrics', '/metrics/experts'].map((path) => [path, name] as const));
  (present ? test : test.skip).each(all)(
    'finds nothing to complain of in the %s of %s',
    async (path, name) => {
      const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
        input: await exposition(name, path),
        encoding: 'utf8',
      });
      expect(`${stdout}${stderr}`).toBe('');
      expect(status).toBe(0);
    },
  );
});

/** Sum of a metric over its labels; an error if the process does not export it. */
function figure(of: NodeMetrics, name: string): number {
  const value = of.get(name);
  if (value === undefined) throw new Error(`no metric ${name}; there are ${[...of.keys()].join(' ')}`);
  return value;
}

const perExpert = (name: string) =>
  layers.flatMap((layer) => expertNumbers.map((expert) => `${name}{layer="${layer}",expert="${expert}"`));

describe('after a batch', () => {
  test.each(['coordinator', 'router-0'])('the router in %s tells what it did', async (name) => {
    const after = await metrics(name);
    const value = (metric: string) => figure(after, `switchyard_${metric}`);
    expect(value('batches_total')).toBe(1);
    expect(value('tokens_total')).toBe(tokens / 2);
    expect(value('routed_rows_total')).toBe((tokens / 2) * topK * layers.length);
    const ofExperts = await experts(name);
    expect(figure(ofExperts, 'switchyard_expert_rows_total')).toBe(value('routed_rows_total'));
    // 4 chunks of 250 tokens, 2 layers, 1 worker: as many out as back.
    expect(value('link_messages_total')).toBe(2 * 4 * layers.length);
    // Out every row once, back every expert's.
    expect(value('link_bytes_total')).toBe((tokens / 2) * layers.length * (1 + topK) * hidden * 2);
    for (const phase of ['norm', 'gate', 'group', 'exchange', 'combine']) {
      expect(value(`${phase}_seconds_count`)).toBe(4 * layers.length);
      expect(value(`${phase}_seconds_sum`)).toBeGreaterThan(0);
    }
    // One worker is even with itself, on each of the layers.
    expect(value('router_balancedness')).toBe(layers.length);
    expect(value('link_credit_bytes')).toBeGreaterThan(0);
    expect(value('in_flight_limit_bytes')).toBeGreaterThan(0);
    expect(value('event_loop_busy_seconds_total')).toBeGreaterThan(0);
    expect(value('batch_seconds_count')).toBe(1);
    for (const metric of ['healthy', 'ready']) expect([metric, value(metric)]).toEqual([metric, 1]);
    const idle = ['retries_total', 'dropped_rows_total', 'batches_live', 'in_flight_bytes', 'link_waiting'];
    for (const metric of idle) {
      expect([metric, value(metric)]).toEqual([metric, 0]);
    }
  });

  test.each(['coordinator', 'router-0'])(
    'the router in %s tells what carries its links, and why',
    async (name) => {
      const text = await exposition(name);
      const info = [...text.matchAll(/^switchyard_link_info\{(.*)\} 1$/gm)].map(([, labels]) => labels);
      expect(info).toHaveLength(1);
      const reason = transport === 'ucx' ? 'transport is ucx' : 'transport is grpc at the router';
      const lanes = transport === 'ucx' ? '[a-z]\\w*( \\w+)*' : 'http2';
      expect(info[0]).toMatch(
        new RegExp(`^worker="worker-0",transport="${transport}",lanes="${lanes}",reason="${reason}",`),
      );
      for (const direction of ['sent', 'returned']) {
        const series = `{worker="worker-0",direction="${direction}",transport="${transport}"`;
        for (const metric of ['link_messages_total', 'link_bytes_total'])
          expect(text).toContain(`switchyard_${metric}${series}`);
      }
      const opened = cluster.lines.filter((line) => line.startsWith(name) && line.includes('"link-open"'));
      expect(opened.map((line) => JSON.parse(line.slice(line.indexOf(' '))))).toMatchObject([
        { transport, reason },
      ]);
    },
  );

  (native.ucx === null ? test.skip : test).each(names)('%s counts what UCX carried', async (name) => {
    const after = await metrics(name);
    const value = (metric: string) => figure(after, `switchyard_ucx_${metric}_total`);
    expect(value('messages') > 0).toBe(transport === 'ucx');
    // Every row of the links, and metadata beside them.
    const rowBytes = (tokens / (name === 'worker-0' ? 1 : 2)) * layers.length * (1 + topK) * hidden * 2;
    expect(value('bytes') > rowBytes).toBe(transport === 'ucx');
    expect(value('copied_bytes')).toBeLessThanOrEqual(value('bytes'));
    expect(value('refused_messages')).toBe(0);
  });

  test('the cluster describes the links of each router', async () => {
    const links = await cluster.links();
    const described = links.map(({ router, worker, transport }) => [router, worker, transport]);
    const kind = transport.toUpperCase();
    expect(described.sort()).toEqual([
      ['coordinator', 'worker-0', kind],
      ['router-0', 'worker-0', kind],
    ]);
  });

  test('the worker tells what it computed, by expert and layer', async () => {
    const after = await metrics('worker-0');
    expect(figure(after, 'switchyard_computed_rows_total')).toBe(tokens * topK * layers.length);
    expect(figure(after, 'switchyard_compute_seconds_total')).toBeGreaterThan(0);
    expect(figure(after, 'switchyard_queue_seconds_count')).toBe(8 * layers.length);
    expect(figure(after, 'switchyard_experts_loaded')).toBe(expertNumbers.length * layers.length);
    expect(figure(after, 'switchyard_event_loop_busy_seconds_total')).toBeGreaterThan(0);
    for (const layer of layers)
      expect(figure(after, `switchyard_computed_rows_total{layer="${layer}"}`)).toBe(tokens * topK);
    expect(figure(after, 'switchyard_queue_rows')).toBe(0);
    const text = await exposition('worker-0', '/metrics/experts');
    for (const metric of ['computed_rows_total', 'compute_seconds_total', 'queue_rows'])
      for (const series of perExpert(`switchyard_expert_${metric}`)) expect(text).toContain(series);
    const ofExperts = parseMetrics(text);
    for (const metric of ['computed_rows_total', 'compute_seconds_total', 'queue_rows'])
      expect(figure(ofExperts, `switchyard_expert_${metric}`)).toBeCloseTo(
        figure(after, `switchyard_${metric}`),
      );
  });

  test('the coordinator tells of nodes, placement, bias and balance', async () => {
    const after = await metrics('coordinator');
    expect(figure(after, 'switchyard_cluster_ready')).toBe(1);
    expect(figure(after, 'switchyard_node_info{state="ready"}')).toBe(3);
    expect(figure(after, 'switchyard_experts_without_copy')).toBe(0);
    const copies = ['min', 'p50', 'max'].map((statistic) =>
      figure(after, `switchyard_layer_copies{statistic="${statistic}"}`),
    );
    expect(copies).toEqual([layers.length, layers.length, layers.length]);
    const load = (statistic: string) =>
      figure(after, `switchyard_layer_load_rows_per_second{statistic="${statistic}"}`);
    expect(load('max')).toBeGreaterThan(load('p50'));
    expect(load('p50')).toBeGreaterThan(load('min'));
    expect(figure(after, 'switchyard_placement_epoch')).toBeGreaterThan(0);
    expect(figure(after, 'switchyard_feedback_steps_total')).toBeGreaterThan(0);
    expect(figure(after, 'switchyard_cluster_balancedness')).toBe(layers.length);
    const text = await exposition('coordinator', '/metrics/experts');
    for (const series of perExpert('switchyard_expert_feedback_bias')) expect(text).toContain(series);
    const biases = [...text.matchAll(/^switchyard_expert_feedback_bias\{.*\} (\S+)$/gm)].map(([, bias]) =>
      Number(bias),
    );
    expect(biases.some((bias) => bias !== 0)).toBe(true);
  });

  test('log lines that concern the batch carry its id, one JSON object a line', () => {
    const lines = cluster.lines.map((line) => JSON.parse(line.slice(line.indexOf(' ') + 1)));
    const complete = lines.filter(({ event }) => event === 'batch-complete');
    expect(complete).toHaveLength(2);
    expect(complete[0].batch).toMatch(/^[0-9a-f-]{36}$/);
    expect(complete[1].batch).toBe(complete[0].batch);
    for (const line of lines)
      expect(line).toMatchObject({ event: expect.any(String), name: expect.any(String) });
  });
});

test('during a batch, queues and bytes in flight show', async () => {
  const endless: RowsReader = {
    tokens: 4_096_000,
    hidden,
    read: (_first, count) => block.subarray(0, count * hidden * 2),
  };
  const call = await cluster.client.forward(endless, { sequences: 64 });
  const wanted: [name: string, metric: string][] = [
    ['coordinator', 'batches_live'],
    ['coordinator', 'in_flight_bytes'],
    ['coordinator', 'link_outstanding_bytes'],
    ['worker-0', 'queue_rows'],
    ['worker-0', 'in_flight_bytes'],
  ];
  const seen = new Set<string>();
  let watching = true;
  const watch = async () => {
    while (watching && seen.size < wanted.length) {
      for (const [name, metric] of wanted) {
        const value = (await metrics(name)).get(`switchyard_${metric}`) ?? 0;
        if (value > 0) seen.add(`${name} ${metric}`);
      }
      await sleep(10);
    }
  };
  const watched = watch().finally(() => call.cancel());
  const drained = (async () => {
    for await (const _ of call);
  })();
  await expect(drained).rejects.toMatchObject({ code: 'CANCELLED' });
  watching = false;
  await watched;
  expect([...seen].sort()).toEqual(wanted.map(([name, metric]) => `${name} ${metric}`).sort());
});
