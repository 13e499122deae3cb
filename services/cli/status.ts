import { z } from 'zod';
import type { ClusterDescription } from '../client/index.js';
import { toggle } from '../common/config.js';
import type { DeviceFigures } from '../common/generated/switchyard/v1/DeviceFigures.js';
import type { LoadProgress } from '../common/generated/switchyard/v1/LoadProgress.js';
import { defineCommand } from './command.js';
import { connectionFields, connectionHelp, withClient } from './connection.js';
import { bytes, count, expertsOf, percent, seconds, table } from './format.js';

export const statusCommand = defineCommand({
  name: 'status',
  summary: 'Show the nodes of a running cluster, their experts and their load',
  section: 'status',
  schema: z.object({
    ...connectionFields,
    json: toggle().default(false),
    placement: toggle().default(false),
  }),
  help: {
    ...connectionHelp,
    json: [null, "print the cluster's description as JSON"],
    placement: [null, 'with --json: tell where every expert is, too'],
  },
  examples: ['switchyard status', 'switchyard status --address 10.0.0.1:7070 --json --placement'],
  run: (config) =>
    withClient(config, async (client) => {
      const description = await client.describeCluster({ placement: config.placement });
      const text = config.json ? JSON.stringify(description, null, 2) : describe(description);
      process.stdout.write(`${text}\n`);
    }),
});

/** Memory, utilisation and seconds of each stream of a device that has memory of its own. */
export function describeDevice(figures: DeviceFigures): string {
  const { memoryUsedBytes, memoryTotalBytes, utilization } = figures;
  return [
    `(${bytes(memoryUsedBytes)} of ${bytes(memoryTotalBytes)}`,
    ...(utilization === undefined ? [] : [`${percent(utilization)} busy`]),
    `in ${seconds(figures.copyInSeconds)}`,
    `compute ${seconds(figures.computeSeconds)}`,
    `out ${seconds(figures.copyOutSeconds)})`,
  ].join(', ');
}

function describe({ view, model, version, uptimeSeconds }: ClusterDescription): string {
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
    node.figures?.device ? `${node.device} ${describeDevice(node.figures.device)}` : node.device || '-',
    node.threads ? String(node.threads) : '-',
    node.role === 'WORKER' ? copies(node) : '-',
    node.role === 'WORKER' && node.figures ? count(node.figures.rowsQueued) : '-',
    node.figures ? bytes(node.figures.rssBytes) : '-',
    node.figures ? percent(node.figures.eventLoopUtilization) : '-',
    node.reason || loading(node.figures?.load ?? null),
  ]);
  const ways = links(nodes);
  const held = view?.epoch ? expertsOf(model?.layers ?? []) : 0;
  const placed = `${count(held)} experts of ${model?.name} (${model?.family}) placed, epoch ${view?.epoch}`;
  const readiness = view?.ready ? 'ready' : `not ready: ${view?.reason}`;
  const summary = `${readiness}; ${placed}; version ${version}, up ${seconds(uptimeSeconds)}`;
  if (nodes.length === 0) return summary;
  return [table([head, ...rows]), ...(ways.length > 1 ? [table(ways)] : []), summary].join('\n\n');
}

/** Experts that a worker holds, and what is on its way or going. */
function copies({ experts, loading, draining, mark }: Nodes[number]): string {
  const notes = [
    loading > 0 ? `${count(loading)} loading` : '',
    draining > 0 ? `${count(draining)} draining` : '',
    mark === 'NO_MARK' ? '' : mark.toLowerCase(),
  ].filter((note) => note !== '');
  return notes.length === 0 ? count(experts) : `${count(experts)} (${notes.join(', ')})`;
}

type Nodes = NonNullable<ClusterDescription['view']>['nodes'];

/** How each router reaches each worker, under its head. */
function links(nodes: Nodes): string[][] {
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

function loading(load: LoadProgress | null): string {
  if (!load || load.expertsLoaded >= load.expertsTotal) return '';
  return `loading ${load.expertsLoaded} of ${load.expertsTotal} experts, ${bytes(load.bytesPerSecond)}/s, ${seconds(load.etaSeconds)} to go`;
}
