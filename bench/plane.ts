import { setTimeout as sleep } from 'node:timers/promises';
import { LocalCluster } from '../services/cli/local-cluster.js';
import type { LocalProcess } from '../services/cli/local-process.js';
import { readMetrics } from '../services/cli/node-metrics.js';
import { drain, repeatedRows } from './batch.js';
import { cpuSeconds } from './cpu.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';

/** Layers and experts of the largest models that are served, with rows so small that only what surrounds them weighs. */
const wide = { preset: 'tiny', hidden: 64, ffn: 32, layers: 58, experts: 256, topK: 8 };
const workers = 8;
const tokens = 512;
const readyTimeoutMs = 300_000;
/** After the last batch: within a minute its load is planned for once, and then nothing happens any more. */
const settleSeconds = 75;
const idleSeconds = 30;
const seriesMax = 1_500;
const idleShareMax = 0.01;
const describes = 20;
const scrapeMs = 1_000;
const watchedSeconds = 15;
/** More of an event loop's time that a scrape every second may take. */
const watchedShareMax = 0.02;

/** What a cluster costs beside its rows: a coordinator with its router and eight workers, with 58 layers of 256 experts. */
export async function benchPlane(options: BenchOptions): Promise<BenchResult[]> {
  const node = { port: 0, metricsPort: 0 };
  const cluster = await LocalCluster.start({
    workers,
    routers: 0,
    threads: 1,
    coordinator: { ...node, ...wide },
    worker: { ...node, slabBytes: '64MiB' },
    readyTimeoutMs,
  });
  try {
    return [
      await forwards(cluster, options),
      await series(cluster),
      await descriptions(cluster),
      await idle(cluster.processes[0]!),
      await watched(cluster, options),
    ];
  } finally {
    await cluster.stop();
  }
}

/** Milliseconds of a batch through all layers, beside what its kernels took, one after another. */
async function forwards({ client, processes }: LocalCluster, options: BenchOptions): Promise<BenchResult> {
  const rows = await repeatedRows(wide.hidden, tokens);
  const cpu: number[] = [];
  const runs = [];
  // The first ones are slower: code is compiled, and slabs are taken.
  for (let run = -2; run < options.runs; run += 1) {
    const before = cpuSeconds(processes[0]!.pid);
    const call = await client.forward(rows, { feedback: true });
    const value = (await drain(call, wide.hidden)) * 1e3;
    if (run < 0) continue;
    cpu.push((cpuSeconds(processes[0]!.pid) - before) * 1e3);
    const { timings } = await call.summary;
    const { normSeconds, gateSeconds, groupSeconds, combineSeconds, computeSeconds } = timings;
    const reference = (normSeconds + gateSeconds + groupSeconds + combineSeconds + computeSeconds) * 1e3;
    runs.push({ value, reference });
  }
  return summarize('plane/forward', 'ms', 'its kernels', runs, {
    tokens,
    layers: wide.layers,
    coordinatorCpuMilliseconds: median(cpu),
  });
}

/** Series of the process that has most of them at /metrics. */
async function series({ processes }: LocalCluster): Promise<BenchResult> {
  const counts = async (process: LocalProcess, path: string) => {
    const text = await (await fetch(`${(await process.listening).metricsUrl}${path}`)).text();
    return text.split('\n').filter((line) => line !== '' && !line.startsWith('#')).length;
  };
  const [coordinator, worker] = processes as [LocalProcess, LocalProcess];
  const value = Math.max(await counts(coordinator, '/metrics'), await counts(worker, '/metrics'));
  return summarize('plane/series', 'series', 'limit', [{ value, reference: seriesMax }], {
    coordinator: await counts(coordinator, '/metrics'),
    worker: await counts(worker, '/metrics'),
    coordinatorExperts: await counts(coordinator, '/metrics/experts'),
    workerExperts: await counts(worker, '/metrics/experts'),
  });
}

/** Milliseconds of DescribeCluster, beside one that tells where every expert is. */
async function descriptions({ client }: LocalCluster): Promise<BenchResult> {
  const bytes = { small: 0, whole: 0 };
  const timed = async (kind: 'small' | 'whole') => {
    const started = performance.now();
    const description = await client.describeCluster({ placement: kind === 'whole' });
    const milliseconds = performance.now() - started;
    bytes[kind] = JSON.stringify(description).length;
    return milliseconds;
  };
  const runs = [];
  for (let run = 0; run < describes; run += 1)
    runs.push({ value: await timed('small'), reference: await timed('whole') });
  return summarize('plane/describe', 'ms', 'with the placement', runs, {
    bytesAsJson: bytes.small,
    bytesAsJsonWithPlacement: bytes.whole,
  });
}

/** Share of a core that the coordinator takes while nothing happens. */
async function idle({ pid }: LocalProcess): Promise<BenchResult> {
  await sleep(settleSeconds * 1e3);
  const before = cpuSeconds(pid);
  const started = performance.now();
  await sleep(idleSeconds * 1e3);
  const value = (cpuSeconds(pid) - before) / ((performance.now() - started) / 1e3);
  return summarize('plane/idle', 'of a core', 'limit', [{ value, reference: idleShareMax }], {
    seconds: idleSeconds,
    secondsAfterTheLastBatch: settleSeconds,
  });
}

/** Shares of time, by process. */
interface Busy {
  /** That its event loop was busy. */
  loop: number[];
  /** That it took of a core. */
  cpu: number[];
}

/** How much busier the event loop that gets busiest is while every process is scraped each second, as a share of its time. */
async function watched({ processes }: LocalCluster, { runs: count }: BenchOptions): Promise<BenchResult> {
  const runs = [];
  const cpu: number[] = [];
  const more = (scraped: number[], alone: number[]) =>
    Math.max(...scraped.map((share, index) => share - alone[index]!));
  for (let run = 0; run < count; run += 1) {
    const [alone, scraped] = [await busyShares(processes, false), await busyShares(processes, true)];
    cpu.push(more(scraped.cpu, alone.cpu));
    runs.push({ value: more(scraped.loop, alone.loop), reference: watchedShareMax });
  }
  return summarize('plane/watched', 'of an event loop', 'limit', runs, { processorMore: median(cpu) });
}

async function busyShares(processes: readonly LocalProcess[], scraped: boolean): Promise<Busy> {
  const urls = await Promise.all(processes.map(async (process) => (await process.listening).metricsUrl));
  const scrape = () => Promise.all(urls.map((url) => readMetrics(url)));
  /** One process after the other over the whole interval, as Prometheus does it. */
  const scrapeSpread = () =>
    Promise.all(
      urls.map(async (url, index) => {
        await sleep((index * scrapeMs) / urls.length);
        await readMetrics(url);
      }),
    );
  const figures = async () => ({
    loop: (await scrape()).map((metrics) => metrics.get('switchyard_event_loop_busy_seconds_total')!),
    cpu: processes.map(({ pid }) => cpuSeconds(pid)),
  });
  const before = await figures();
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1e3;
  while (elapsed() < watchedSeconds) {
    await Promise.all([sleep(scrapeMs), scraped ? scrapeSpread() : null]);
  }
  const seconds = elapsed();
  const after = await figures();
  const share = (kind: keyof Busy) =>
    after[kind].map((value, index) => (value - before[kind][index]!) / seconds);
  return { loop: share('loop'), cpu: share('cpu') };
}
