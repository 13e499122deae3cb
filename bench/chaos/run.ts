import { sleep } from '../../services/common/lifecycle.js';
import { presets } from '../../services/model/synthetic.js';
import { randomOf } from '../random.js';
import { ChaosCluster, type ChaosClusterOptions } from './cluster.js';
import { describeFault, drawFault, inject } from './faults.js';
import { Load, type LoadReport, loadRows, runBatch } from './load.js';

export interface ChaosOptions extends Omit<ChaosClusterOptions, 'onLine' | 'preset'> {
  runs: number;
  /** Of the first run; the others follow. */
  seed: number;
  /** Of each run. */
  faults: number;
  log: (line: string) => void;
}

export interface ChaosReport extends Omit<LoadReport, 'failed'> {
  runs: number;
  faults: number;
  failedBatches: number;
  /** Why, and in what run. */
  reasons: string[];
  /** Runs after whose faults the cluster was not whole again. */
  notHealed: string[];
  /** The longest time that a stream of batches had no answer after each fault, and until the cluster was whole again. */
  pauseMilliseconds: { p50: number; p99: number; max: number };
  healMilliseconds: { p50: number; p99: number; max: number };
}

const preset = 'tiny';
const healMsMax = 60_000;
/** Between faults the load runs undisturbed. */
const calmMs = 300;

/** Faults on real processes under load, one after the other, each when the cluster has healed from the one before. */
export async function runChaos(options: ChaosOptions): Promise<ChaosReport> {
  const { runs, seed, log } = options;
  const { hidden } = presets[preset].model;
  const rows = await loadRows(hidden);
  const total: LoadReport = { batches: 0, failed: [], rowsLost: 0, mismatches: 0 };
  const pauses: number[] = [];
  const heals: number[] = [];
  const notHealed: string[] = [];
  let expected: string[] | null = null;
  for (let run = 0; run < runs; run += 1) {
    const recent: string[] = [];
    const onLine = (process: string, line: string) => {
      recent.push(`${process}: ${line}`);
      if (recent.length > 400) recent.shift();
    };
    const cluster = await ChaosCluster.start({ ...options, preset, onLine });
    const client = await cluster.connect();
    try {
      expected ??= await Promise.all(
        rows.map(async (reader) => (await runBatch(client, reader, () => {})).digest),
      );
      const load = new Load(client, rows, expected);
      const random = randomOf(seed + run);
      try {
        for (let fault = 0; fault < options.faults; fault += 1) {
          await sleep(calmMs);
          load.takeLongestPause();
          const drawn = drawFault(random, cluster.workers, options);
          log(`seed ${seed + run}: ${describeFault(drawn)}`);
          await inject(drawn, cluster);
          heals.push(await cluster.untilWhole(healMsMax));
          pauses.push(load.takeLongestPause());
          log(`  whole after ${Math.round(heals.at(-1)!)} ms more; pause ${Math.round(pauses.at(-1)!)} ms`);
        }
      } catch (error) {
        notHealed.push(`seed ${seed + run}: ${(error as Error).message}`);
        for (const line of recent) log(line);
      }
      const report = await load.end();
      total.batches += report.batches;
      total.rowsLost += report.rowsLost;
      total.mismatches += report.mismatches;
      total.failed.push(...report.failed.map((reason) => `seed ${seed + run}: ${reason}`));
      if (report.failed.length + report.rowsLost + report.mismatches > 0)
        for (const line of recent) log(line);
    } finally {
      client.destroy();
      await cluster.stop();
    }
  }
  const { failed, ...counts } = total;
  return {
    runs,
    faults: pauses.length,
    ...counts,
    failedBatches: failed.length,
    reasons: failed.slice(0, 20),
    notHealed,
    pauseMilliseconds: percentiles(pauses),
    healMilliseconds: percentiles(heals),
  };
}

function percentiles(values: readonly number[]): { p50: number; p99: number; max: number } {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) => Math.round(sorted[Math.ceil(share * sorted.length) - 1] ?? 0);
  return { p50: at(0.5), p99: at(0.99), max: at(1) };
}
