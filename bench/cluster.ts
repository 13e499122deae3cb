import { availableParallelism } from 'node:os';
import { UsageMeter } from '../services/cli/cluster-usage.js';
import { LocalCluster, type LocalClusterOptions } from '../services/cli/local-cluster.js';
import { type PresetName, presets } from '../services/model/synthetic.js';
import { type Bare, BareFfn } from './bare.js';
import { repeatedRows, submit } from './batch.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';

interface Case {
  id: string;
  preset: PresetName;
  /** Enough for the pipeline's start and end to weigh little beside its middle. */
  tokens: number;
  chunkTokens: number;
}

/** `seed` is the shape of the reference batch; a run of it computes 16,384 of its 1,280,000 tokens. */
export const clusterCases: readonly Case[] = [
  { id: 'cluster/seed', preset: 'reference', tokens: 16_384, chunkTokens: 1_024 },
  { id: 'cluster/fine', preset: 'fine', tokens: 16_384, chunkTokens: 1_024 },
  { id: 'cluster/demo', preset: 'demo', tokens: 49_152, chunkTokens: 1_024 },
];

const bareSeconds = 4;
const expertsPerCore = 4;
const readyTimeoutMs = 300_000;

/**
 * A whole cluster (client, coordinator with its router, one single-threaded worker a core) against the bare expert FFN
 * on the same cores.
 */
export async function benchCluster(test: Case, options: BenchOptions): Promise<BenchResult> {
  const cores = availableParallelism();
  const spec = presets[test.preset].model;
  const bare = await BareFfn.open({ kind: 'synthetic', spec }, cores, expertsPerCore);
  const cluster = { workers: cores, routers: 0, threads: 1, coordinator: { threads: cores } };
  return compare(test, bare, cluster, options);
}

/** What is special about a cluster that is measured. */
export type ClusterSetup = Pick<
  LocalClusterOptions,
  'workers' | 'routers' | 'threads' | 'coordinator' | 'router' | 'worker'
>;

/** Tokens per second of a cluster and of the bare FFN in turn, so that both see the same machine. Closes `bare`. */
export async function compare(
  test: Case,
  bare: Bare,
  setup: ClusterSetup,
  options: BenchOptions,
): Promise<BenchResult> {
  const node = { port: 0, metricsPort: 0 };
  let cluster: LocalCluster | null = null;
  try {
    cluster = await LocalCluster.start({
      ...setup,
      coordinator: { ...node, preset: test.preset, ...setup.coordinator },
      router: { ...node, ...setup.router },
      worker: { ...node, ...setup.worker },
      readyTimeoutMs,
    });
    const rows = await repeatedRows(presets[test.preset].model.hidden, test.tokens);
    await submit(cluster.client, rows, { chunkTokens: test.chunkTokens });
    const runs: { value: number; reference: number }[] = [];
    const loops: Record<'client' | 'router' | 'worker', number>[] = [];
    for (let run = 0; run < options.runs; run++) {
      const reference = await bare.tokensPerSecond(bareSeconds);
      const meter = await UsageMeter.begin(cluster);
      const value = await submit(cluster.client, rows, { chunkTokens: test.chunkTokens });
      const usage = await meter.end();
      const busiest = (...roles: string[]) =>
        Math.max(...usage.filter(({ role }) => roles.includes(role)).map((one) => one.eventLoopUtilization));
      loops.push({
        client: busiest('client'),
        router: busiest('coordinator', 'router'),
        worker: busiest('worker'),
      });
      runs.push({ value, reference });
      options.log(`${test.id} run ${run + 1}: ${value.toFixed(0)} tokens/s ÷ ${reference.toFixed(0)}`);
    }
    const loop = (role: 'client' | 'router' | 'worker') => median(loops.map((sample) => sample[role]));
    return summarize(test.id, 'tokens/s', 'bare expert FFN', runs, {
      eventLoopClient: loop('client'),
      eventLoopRouter: loop('router'),
      eventLoopWorker: loop('worker'),
    });
  } finally {
    await cluster?.stop();
    bare.close();
  }
}
