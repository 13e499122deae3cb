import { writeFile } from 'node:fs/promises';
import { z } from 'zod';
import { text } from '../common/config.js';
import { modelFields } from '../coordinator/config.js';
import { runBatch } from './batch.js';
import { batchFields, batchHelp } from './batch-options.js';
import { assertVerified, batchJson, describeBatch, printFigures } from './batch-report.js';
import { clusterFields, clusterHelp, localClusterOptions } from './cluster-options.js';
import { describeUsage, type ProcessUsage, UsageMeter } from './cluster-usage.js';
import { modelHelp } from './coordinator.js';
import { count, seconds } from './format.js';
import { LocalCluster } from './local-cluster.js';
import { openLogs } from './logs.js';
import { abortOnSignal } from './signals.js';

// `layers` and `seed` are the batch's here; the model's go by other names.
const { layers: modelLayers, seed: modelSeed, ...otherModelFields } = modelFields;
const { layers: modelLayersHelp, seed: modelSeedHelp, ...otherModelHelp } = modelHelp;

/** A model, a cluster for it, and one batch: for commands that start and stop a cluster of their own. */
export const ownClusterFields = {
  ...otherModelFields,
  modelLayers,
  modelSeed,
  ...clusterFields,
  ...batchFields,
  json: text().nullable().default(null),
};

export const ownClusterHelp = {
  ...otherModelHelp,
  modelLayers: modelLayersHelp,
  modelSeed: modelSeedHelp,
  ...clusterHelp,
  ...batchHelp,
  json: ['file', 'write the report as JSON'],
} as const;

const ownClusterSchema = z.object(ownClusterFields);
export type OwnClusterConfig = z.infer<typeof ownClusterSchema>;

const say = (line: string) => process.stdout.write(`${line}\n`);

/** Starts the cluster, sends the batch, prints and writes the report, stops the cluster whatever happened. */
export async function runOnOwnCluster(config: OwnClusterConfig, file: string | null): Promise<void> {
  const signal = abortOnSignal();
  const startedMs = performance.now();
  const { workers, routers, preset, model, allowNonFiniteWeights } = config;
  const { hidden, ffn, experts, topK, activation } = config;
  const shape = {
    hidden,
    ffn,
    experts,
    topK,
    activation,
    layers: config.modelLayers,
    seed: config.modelSeed,
  };
  const extra = routers > 0 ? `, ${count(routers)} routers` : '';
  say(`starting 1 coordinator, ${count(workers)} workers${extra} …`);
  const logs = await openLogs(config.logDirectory);
  const options = localClusterOptions(config, { preset, model, allowNonFiniteWeights, ...shape }, file);
  const cluster = await LocalCluster.start({ ...options, onLine: logs.write, signal });
  try {
    await announce(cluster, (performance.now() - startedMs) / 1000);
    await report(cluster, config, signal);
  } finally {
    await cluster.stop();
    await logs.close();
  }
  say(`\nstopped; ${seconds((performance.now() - startedMs) / 1000)} in all`);
}

async function announce(cluster: LocalCluster, readySeconds: number): Promise<void> {
  const { view, model } = await cluster.client.describeCluster();
  const experts = count(view?.placements.length ?? 0);
  say(
    `ready in ${seconds(readySeconds)}: model ${model?.name}, ${experts} experts in ${model?.layers.length} layers`,
  );
  say(`metrics while it runs: ${cluster.metricsUrl}/metrics\n`);
}

async function report(cluster: LocalCluster, config: OwnClusterConfig, signal: AbortSignal): Promise<void> {
  const meter = await UsageMeter.begin(cluster);
  let usage: ProcessUsage[] = [];
  const result = await runBatch(cluster.client, config, signal, async () => {
    usage = await meter.end();
  });
  printFigures(describeBatch(result));
  say(`\n${describeUsage(usage)}`);
  if (config.json !== null) {
    const content = { ...batchJson(result), processes: usage };
    await writeFile(config.json, `${JSON.stringify(content, null, 2)}\n`);
  }
  assertVerified(result.verification);
}
