import { z } from 'zod';
import { text } from '../common/config.js';
import { assertApart, OutputFile } from '../common/output-file.js';
import { modelFields } from '../coordinator/config.js';
import { runBatch } from './batch.js';
import { batchFields, batchHelp } from './batch-options.js';
import { assertVerified, batchJson, describeBatch, formatFigures, reportStream } from './batch-report.js';
import { clusterFields, clusterHelp, localClusterOptions } from './cluster-options.js';
import { describeUsage, type ProcessUsage, UsageMeter } from './cluster-usage.js';
import { modelHelp } from './coordinator.js';
import { count, expertsOf, seconds } from './format.js';
import { clusterEndMsMax, LocalCluster } from './local-cluster.js';
import { openLogs } from './logs.js';
import { abortOnSignal, endDespiteReads } from './signals.js';

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

/** Starts the cluster, sends the batch, prints and writes the report, stops the cluster whatever happened. */
export async function runOnOwnCluster(config: OwnClusterConfig, file: string | null): Promise<void> {
  const signal = abortOnSignal(clusterEndMsMax);
  const { output, returnRouting, record, json } = config;
  assertApart({ output, returnRouting, record, json });
  const run: Run = {
    config,
    json: json === null ? null : await OutputFile.open('json', json, signal),
    say: (text) => reportStream(output, returnRouting, record, json).write(text),
    signal,
  };
  try {
    await onOwnCluster(run, file);
  } catch (error) {
    await endDespiteReads();
    // What failed because of the signal tells less.
    throw signal.aborted ? signal.reason : error;
  } finally {
    await run.json?.abort();
  }
}

interface Run {
  config: OwnClusterConfig;
  json: OutputFile | null;
  say: (text: string) => void;
  signal: AbortSignal;
}

async function onOwnCluster(run: Run, file: string | null): Promise<void> {
  const { config, say, signal } = run;
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
  say(`starting 1 coordinator, ${count(workers)} workers${extra} …\n`);
  const logs = await openLogs(config);
  const options = localClusterOptions(config, { preset, model, allowNonFiniteWeights, ...shape }, file);
  let cluster: LocalCluster | null = null;
  try {
    cluster = await LocalCluster.start({ ...options, onLine: logs.write, signal });
    say(await announcement(cluster, (performance.now() - startedMs) / 1000));
    await report(cluster, run);
  } finally {
    await cluster?.stop();
    await logs.close();
  }
  say(`\nstopped; ${seconds((performance.now() - startedMs) / 1000)} in all\n`);
}

async function announcement(cluster: LocalCluster, readySeconds: number): Promise<string> {
  const { name, layers } = await cluster.client.describeModel();
  const experts = count(expertsOf(layers));
  return [
    `ready in ${seconds(readySeconds)}: model ${name}, ${experts} experts in ${layers.length} layers`,
    `metrics while it runs: ${cluster.metricsUrl}/metrics`,
    '\n',
  ].join('\n');
}

async function report(cluster: LocalCluster, { config, json, say, signal }: Run): Promise<void> {
  const meter = await UsageMeter.begin(cluster);
  let usage: ProcessUsage[] = [];
  const result = await runBatch(cluster.client, config, signal, async () => {
    usage = await meter.end();
  });
  say(formatFigures(describeBatch(result)));
  say(`\n${describeUsage(usage)}\n`);
  const content = { ...batchJson(result), processes: usage };
  await json?.write(Buffer.from(`${JSON.stringify(content, null, 2)}\n`));
  await json?.close();
  assertVerified(result.verification);
}
