import { availableParallelism } from 'node:os';
import { UsageMeter } from '../services/cli/cluster-usage.js';
import { LocalCluster, type LocalClusterOptions } from '../services/cli/local-cluster.js';
import type { RowsReader } from '../services/client/index.js';
import { type PresetName, presets } from '../services/model/synthetic.js';
import { type Bare, BareFfn } from './bare.js';
import { repeatedRows, submit } from './batch.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';

interface Case {
  id: string;
  preset: PresetName;
  /** Of a run. Enough for the pipeline's start and end to weigh little beside its middle. */
  tokens: number;
  /** What a run lasts, more or less, with as many tokens as that takes; `tokens` are then the fewest. */
  runSeconds?: number;
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
    const { client } = cluster;
    const { hidden } = presets[test.preset].model;
    const run = (rows: RowsReader) => submit(client, rows, { chunkTokens: test.chunkTokens });
    let rows = await repeatedRows(hidden, test.tokens);
    await run(rows);
    if (test.runSeconds !== undefined) {
      // By its own speed, and not the bare one: a slow cluster must not take longer to be measured.
      const chunks = Math.ceil(((await run(rows)) * test.runSeconds) / test.chunkTokens);
      rows = await repeatedRows(hidden, Math.max(test.tokens, chunks * test.chunkTokens));
    }
    const runs: { value: number; reference: number }[] = [];
    const loops: Record<'client' | 'router' | 'worker', number>[] = [];
    for (let number = 1; number <= options.runs; number++) {
      const reference = await bare.tokensPerSecond(bareSeconds);
      const meter = await UsageMeter.begin(cluster);
      const value = await run(rows);
      const usage = await meter.end();
      const busiest = (...roles: string[]) =>
        Math.max(...usage.filter(({ role }) => roles.includes(role)).map((one) => one.eventLoopUtilization));
      loops.push({
        client: busiest('client'),
        router: busiest('coordinator', 'router'),
        worker: busiest('worker'),
      });
      runs.push({ value, reference });
      options.log(`${test.id} run ${number}: ${value.toFixed(0)} tokens/s ÷ ${reference.toFixed(0)}`);
    }
    const loop = (role: 'client' | 'router' | 'worker') => median(loops.map((sample) => sample[role]));
    return summarize(test.id, 'tokens/s', 'bare expert FFN', runs, {
      tokens: rows.tokens,
      eventLoopClient: loop('client'),
      eventLoopRouter: loop('router'),
      eventLoopWorker: loop('worker'),
    });
  } finally {
    await cluster?.stop();
    bare.close();
  }
}
