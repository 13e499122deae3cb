import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { LocalCluster } from '../services/cli/local-cluster.js';
import type { Flags } from '../services/cli/local-process.js';
import { repeatedRows, submit } from './batch.js';
import { cpuSeconds } from './cpu.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';

/** Small, so that what surrounds the rows weighs. */
const preset = 'tiny';
const hidden = 256;
const tokens = 512;
/** Of a run: enough for some to be sampled. */
const batches = 400;
const sampling = 0.01;
const readyTimeoutMs = 300_000;

/** Batches a second of a cluster of which one batch in a hundred is traced, beside one that traces nothing. */
async function benchTracing(options: BenchOptions): Promise<BenchResult[]> {
  let bytes = 0;
  const receiver = createServer((request, response) => {
    request.on('data', (part: Buffer) => {
      bytes += part.byteLength;
    });
    request.on('end', () => response.setHeader('content-type', 'application/json').end('{}'));
  });
  await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve));
  const { port } = receiver.address() as AddressInfo;
  const clusters: LocalCluster[] = [];
  try {
    const traced = await start({
      otlpEndpoint: `http://127.0.0.1:${port}/v1/traces`,
      traceSampling: sampling,
    });
    clusters.push(traced);
    const plain = await start({});
    clusters.push(plain);
    const rows = await repeatedRows(hidden, tokens);
    const runs = [];
    const cpu: number[] = [];
    // The first one compiles.
    for (let run = -1; run < options.runs; run += 1) {
      const before = [cpuOf(traced), cpuOf(plain)] as const;
      const seconds = { traced: 0, plain: 0 };
      // Batch by batch, for the machine may change; each is first as often as the other.
      for (let batch = 0; batch < batches; batch += 1) {
        if (batch % 2 === 0) seconds.plain += tokens / (await submit(plain.client, rows, {}));
        seconds.traced += tokens / (await submit(traced.client, rows, {}));
        if (batch % 2 === 1) seconds.plain += tokens / (await submit(plain.client, rows, {}));
      }
      if (run < 0) continue;
      runs.push({ value: batches / seconds.traced, reference: batches / seconds.plain });
      cpu.push((cpuOf(traced) - before[0]) / (cpuOf(plain) - before[1]));
    }
    const details = { sampling, tokens, bytesOfSpans: bytes, processorTimeRatio: median(cpu) };
    return [summarize('tracing/sampled', 'batches/s', 'off', runs, details)];
  } finally {
    await Promise.all(clusters.map((cluster) => cluster.stop()));
    receiver.close();
    receiver.closeAllConnections();
  }
}

function start(tracing: Flags): Promise<LocalCluster> {
  const node = { port: 0, metricsPort: 0, ...tracing };
  return LocalCluster.start({
    workers: 2,
    routers: 0,
    threads: 1,
    coordinator: { ...node, preset },
    worker: node,
    readyTimeoutMs,
  });
}

/** What a cluster's processes have taken of cores. */
const cpuOf = ({ processes }: LocalCluster) => processes.reduce((sum, { pid }) => sum + cpuSeconds(pid), 0);

export const tracingGroups = { tracing: benchTracing };
