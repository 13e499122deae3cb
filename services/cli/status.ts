import { z } from 'zod';
import type { ClusterDescription } from '../client/index.js';
import { readToken } from '../common/access.js';
import { toggle } from '../common/config.js';
import { defineCommand } from './command.js';
import { connectionFields, connectionHelp, withClient } from './connection.js';
import { bytes, count, percent, seconds, table } from './format.js';
import { type NodeMetrics, readMetrics } from './node-metrics.js';

export const statusCommand = defineCommand({
  name: 'status',
  summary: 'Show the nodes of a running cluster, their experts and their load',
  section: 'status',
  schema: z.object({ ...connectionFields, json: toggle().default(false) }),
  help: { ...connectionHelp, json: [null, "print the cluster's description as JSON"] },
  examples: ['switchyard status', 'switchyard status --address 10.0.0.1:7070 --json'],
  run: (config) =>
    withClient(config, async (client) => {
      const description = await client.describeCluster();
      if (config.json) process.stdout.write(`${JSON.stringify(description, null, 2)}\n`);
      else
        process.stdout.write(
          `${describe(description, await workerMetrics(description, readToken(config)))}\n`,
        );
    }),
});

/** What the metrics of a worker tell. */
interface WorkerMetrics {
  queuedRows: number;
  /** Of a device with memory of its own: what it is doing. */
  device: string | null;
}

/** Of each worker whose metrics can be read from here, by name. */
async function workerMetrics(
  { view }: ClusterDescription,
  token: string | null,
): Promise<Map<string, WorkerMetrics>> {
  const found = new Map<string, WorkerMetrics>();
  const workers = (view?.nodes ?? []).filter((node) => node.role === 'WORKER' && node.metricsUrl !== '');
  await Promise.all(
    workers.map(async ({ name, metricsUrl }) => {
      const metrics = await readMetrics(metricsUrl, token).catch(() => null);
      if (!metrics) return;
      found.set(name, {
        queuedRows: metrics.get('switchyard_queue_rows') ?? 0,
        device: describeDevice(metrics),
      });
    }),
  );
  return found;
}

/** Memory, utilisation and seconds of each stream of a device that has memory of its own; null for the host. */
export function describeDevice(metrics: NodeMetrics): string | null {
  const total = metrics.get('switchyard_device_memory_bytes');
  if (total === undefined) return null;
  const used = metrics.get('switchyard_device_memory_used_bytes') ?? 0;
  const busy = metrics.get('switchyard_device_utilization');
  const worked = (stream: string) => metrics.get(`switchyard_device_stream_seconds{stream="${stream}"}`) ?? 0;
  return [
    `(${bytes(used)} of ${bytes(total)}`,
    ...(busy === undefined ? [] : [`${percent(busy)} busy`]),
    `in ${seconds(worked('copy_in'))}`,
    `compute ${seconds(worked('compute'))}`,
    `out ${seconds(worked('copy_out'))})`,
  ].join(', ');
}

function describe(
  { view, model, version, uptimeSeconds }: ClusterDescription,
  measured: ReadonlyMap<string, WorkerMetrics>,
): string {
  const nodes = [...(view?.nodes ?? [])].sort(
    (a, b) => a.role.localeCompare(b.role) || a.name.localeCompare(b.name),
  );
  const head = [
    'NODE',
    'ROLE',
    'STATE',
    'ADDRESS',
    'DEVICE',
    'THREADS',
    'EXPERTS',
    'QUEUED ROWS',
    'MEMORY',
    'EVENT LOOP',
    'NOTE',
  ];
  const rows = nodes.map((node) => [
    node.name,
    node.role.toLowerCase(),
    node.state.toLowerCase(),
    node.address,
    [node.device || '-', measured.get(node.name)?.device ?? ''].join(' ').trim(),
    node.threads ? String(node.threads) : '-',
    node.role === 'WORKER' ? count(node.experts) : '-',
    measured.has(node.name) ? count(measured.get(node.name)!.queuedRows) : '-',
    bytes(node.rssBytes),
    percent(node.eventLoopUtilization),
    node.reason || loading(node.load),
  ]);
  const ways = links(nodes);
  const held = view?.placements.filter(({ workers }) => workers.length > 0).length ?? 0;
  const placed = `${count(held)} experts of ${model?.name} (${model?.family}) placed, epoch ${view?.epoch}`;
  const readiness = view?.ready ? 'ready' : `not ready: ${view?.reason}`;
  const summary = `${readiness}; ${placed}; version ${version}, up ${seconds(uptimeSeconds)}`;
  if (nodes.length === 0) return summary;
  return [table([head, ...rows]), ...(ways.length > 1 ? [table(ways)] : []), summary].join('\n\n');
}

/** How each router reaches each worker, under its head. */
function links(nodes: NonNullable<ClusterDescription['view']>['nodes']): string[][] {
  const names = { NO_LINK: 'none', GRPC: 'grpc', UCX: 'ucx' } as const;
  const rows = nodes.flatMap(({ name, links }) =>
    links.map(({ worker, transport, lanes, reason }) => [
      name,
      worker,
      names[transport],
      lanes || '-',
      reason,
    ]),
  );
  return [['ROUTER', 'WORKER', 'TRANSPORT', 'LANES', 'REASON'], ...rows];
}

function loading(load: NonNullable<ClusterDescription['view']>['nodes'][number]['load']): string {
  if (!load || load.expertsLoaded >= load.expertsTotal) return '';
  return `loading ${load.expertsLoaded} of ${load.expertsTotal} experts, ${bytes(load.bytesPerSecond)}/s, ${seconds(load.etaSeconds)} to go`;
}
