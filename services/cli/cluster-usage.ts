import { performance } from 'node:perf_hooks';
import { nativeRuntime } from '../runtime/native.js';
import { bytes, percent, table } from './format.js';
import type { LocalCluster } from './local-cluster.js';
import { peakRssBytes } from './local-process.js';
import { type NodeMetrics, readMetrics } from './node-metrics.js';

/** What a process used while something was measured. */
export interface ProcessUsage {
  role: 'coordinator' | 'router' | 'worker' | 'client';
  name: string;
  pid: number;
  /** Since the process started. */
  peakRssBytes: number | null;
  /** Share of time that the event loop was busy. */
  eventLoopUtilization: number;
  /** Seconds that a worker's device computed, divided by the time measured; null for others. */
  computeShare: number | null;
}

/** Measures the processes of a local cluster, and this one, from `begin` to `end`. */
export class UsageMeter {
  private constructor(
    private readonly cluster: LocalCluster,
    private readonly before: readonly NodeMetrics[],
    private readonly utilization = nativeRuntime.usage.eventLoopMeter(),
    private readonly startedMs = performance.now(),
  ) {}

  static async begin(cluster: LocalCluster): Promise<UsageMeter> {
    return new UsageMeter(cluster, await readAll(cluster));
  }

  async end(): Promise<ProcessUsage[]> {
    const elapsed = (performance.now() - this.startedMs) / 1000;
    const utilization = this.utilization();
    const after = await readAll(this.cluster);
    const share = (index: number, metric: string) =>
      ((after[index]!.get(metric) ?? 0) - (this.before[index]!.get(metric) ?? 0)) / elapsed;
    const nodes = this.cluster.processes.map(
      (process, index): ProcessUsage => ({
        role: process.role,
        name: process.name,
        pid: process.pid,
        peakRssBytes: process.peakRssBytes(),
        eventLoopUtilization: share(index, 'switchyard_event_loop_busy_seconds_total'),
        computeShare: process.role === 'worker' ? share(index, 'switchyard_compute_seconds_total') : null,
      }),
    );
    const client: ProcessUsage = {
      role: 'client',
      name: 'client',
      pid: process.pid,
      peakRssBytes: peakRssBytes(process.pid),
      eventLoopUtilization: utilization,
      computeShare: null,
    };
    return [...nodes, client];
  }
}

async function readAll(cluster: LocalCluster): Promise<NodeMetrics[]> {
  return Promise.all(
    cluster.processes.map(async (process) =>
      readMetrics((await process.listening).metricsUrl, cluster.credential),
    ),
  );
}

export function describeUsage(usage: readonly ProcessUsage[]): string {
  const rows = usage.map(({ name, pid, peakRssBytes, eventLoopUtilization, computeShare }) => [
    name,
    String(pid),
    peakRssBytes === null ? '-' : bytes(peakRssBytes),
    percent(eventLoopUtilization),
    computeShare === null ? '-' : percent(computeShare),
  ]);
  return table([['PROCESS', 'PID', 'PEAK RSS', 'EVENT LOOP BUSY', 'COMPUTING'], ...rows]);
}
