import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { HostCluster } from './hosts/cluster.js';
import { shapeLink } from './hosts/host.js';
import { drawTimeline, length, overlap, readTrace, type TimelineSpan, union } from './hosts/timeline.js';
import { hostCases, whyNotHosts } from './hosts.js';
import { type BenchOptions, type BenchResult, summarize } from './report.js';

const windowMicroseconds = 2_000_000;

/**
 * How much of the time in which a worker's rows travel it computes: one batch over the thin link, traced by the worker.
 * Draws a part of the middle of the last run, if the options name a file for it.
 */
export async function benchTimeline(options: BenchOptions): Promise<BenchResult[]> {
  const obstacle = whyNotHosts();
  if (obstacle !== null) {
    options.log(`left out: ${obstacle}`);
    return [];
  }
  const { preset, rate, tokens, chunkTokens, combine, id } = hostCases.find(
    (test) => test.id === 'hosts/fine-500mbit',
  )!;
  const runs: { value: number; reference: number }[] = [];
  let spans: TimelineSpan[] = [];
  for (let run = 0; run < options.runs; run++) {
    spans = await trace(async (file) => {
      const cluster = await HostCluster.start({ preset, workerB: { trace: file } });
      try {
        const { hosts } = cluster;
        await shapeLink(hosts, rate);
        await Promise.all(hosts.map((host) => host.call('prepare', preset, tokens / 4)));
        await Promise.all(hosts.map((host) => host.call('forward', { chunkTokens, combine })));
      } finally {
        await cluster.stop();
      }
    });
    const compute = union(spans.filter(({ lane }) => lane === 'compute'));
    const transfer = union(spans.filter(({ lane }) => lane !== 'compute'));
    runs.push({ value: overlap(transfer, compute) / 1e6, reference: length(transfer) / 1e6 });
  }
  if (options.timeline !== null) {
    const starts = spans.map(({ start }) => start);
    const middle = (Math.min(...starts) + Math.max(...spans.map(({ end }) => end))) / 2;
    const title = `worker-b during ${id}, combine ${combine}: what it receives, computes and sends`;
    const [from, to] = [middle - windowMicroseconds / 2, middle + windowMicroseconds / 2];
    await writeFile(options.timeline, drawTimeline(title, spans, from, to));
  }
  return [summarize('hosts/overlap', 's computing', 'receiving or sending', runs)];
}

/** What a worker traced while `run` ran it with the file given. */
async function trace(run: (file: string) => Promise<void>): Promise<TimelineSpan[]> {
  const directory = await mkdtemp(join(tmpdir(), 'switchyard-trace-'));
  try {
    const file = join(directory, 'worker.json');
    await run(file);
    return readTrace(await readFile(file, 'utf8'));
  } finally {
    await rm(directory, { recursive: true });
  }
}
