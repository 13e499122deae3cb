import { z } from 'zod';
import type { ClusterDescription } from '../client/index.js';
import { toggle } from '../common/config.js';
import { defineCommand } from './command.js';
import { connectionFields, connectionHelp, withClient } from './connection.js';
import { bytes, count, percent, seconds, table } from './format.js';

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
      process.stdout.write(`${config.json ? JSON.stringify(description, null, 2) : describe(description)}\n`);
    }),
});

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
    'MEMORY',
    'EVENT LOOP',
    'NOTE',
  ];
  const rows = nodes.map((node) => [
    node.name,
    node.role.toLowerCase(),
    node.state.toLowerCase(),
    node.address,
    node.device || '-',
    node.threads ? String(node.threads) : '-',
    node.role === 'WORKER' ? count(node.experts) : '-',
    bytes(node.rssBytes),
    percent(node.eventLoopUtilization),
    node.reason || loading(node.load),
  ]);
  const placed = `${count(view?.placements.length ?? 0)} experts of ${model?.name} (${model?.family}) placed, epoch ${view?.epoch}`;
  const readiness = view?.ready ? 'ready' : `not ready: ${view?.reason}`;
  const summary = `${readiness}; ${placed}; version ${version}, up ${seconds(uptimeSeconds)}`;
  return nodes.length === 0 ? summary : `${table([head, ...rows])}\n${summary}`;
}

function loading(load: NonNullable<ClusterDescription['view']>['nodes'][number]['load']): string {
  if (!load || load.expertsLoaded >= load.expertsTotal) return '';
  return `loading ${load.expertsLoaded} of ${load.expertsTotal} experts, ${bytes(load.bytesPerSecond)}/s, ${seconds(load.etaSeconds)} to go`;
}
