import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { native } from '../native/index.js';
import { createLogger } from '../services/common/log.js';
import { createUtilizationMeter } from '../services/common/metrics.js';
import { prepareProcess } from '../services/common/process.js';
import { dialLink } from '../services/transport/dial.js';
import type { Link, TokenBatch } from '../services/transport/link.js';
import type { LinkWorkerMessage, LinkWorkerOptions } from './link-worker.js';
import { type BenchOptions, type BenchResult, summarize } from './report.js';

const hidden = 4096;
const rowCount = 128;
const rowBytes = hidden * 2;
const messageBytes = rowCount * rowBytes;
const inFlight = 8;
const secondsPerRun = 2;

/** Rows sent by the router only, or sent and returned. */
type Direction = 'one-way' | 'echo';

interface Load {
  cpuSeconds: number;
  eventLoopUtilization: number;
}

function tokenBatch(direction: Direction): TokenBatch {
  const entries = direction === 'echo' ? rowCount : 1;
  return {
    meta: {
      batchId: 'bench',
      chunk: 0,
      layer: 0,
      attempt: 0,
      epoch: 1,
      hidden,
      rowCount,
      deadlineMs: 0,
      combine: 'exact',
      segments: Uint32Array.of(0, entries),
      rowIndices: Uint32Array.from({ length: entries }, (_, i) => i),
      weights: null,
    },
    rows: native.allocateSlab(messageBytes),
  };
}

/** Bytes of rows sent per second with `inFlight` token batches under way. */
async function bytesPerSecond(link: Link, direction: Direction, seconds: number): Promise<number> {
  const { signal } = new AbortController();
  const start = performance.now();
  const until = start + seconds * 1000;
  let sent = 0;
  const lane = async () => {
    while (performance.now() < until) {
      const { rows } = await link.exchange(tokenBatch(direction), signal);
      rows.release();
      sent += messageBytes;
    }
  };
  await Promise.all(Array.from({ length: inFlight }, lane));
  return sent / ((performance.now() - start) / 1000);
}

async function workerLoad(worker: ChildProcess): Promise<Load> {
  worker.send('load');
  const [load] = (await once(worker, 'message')) as [Load];
  return load;
}

async function measure(
  link: Link,
  worker: ChildProcess,
  direction: Direction,
  options: BenchOptions,
): Promise<BenchResult> {
  await bytesPerSecond(link, direction, secondsPerRun / 4);
  const meter = createUtilizationMeter();
  const usage = process.cpuUsage();
  await workerLoad(worker);
  const runs = [];
  let gigabytes = 0;
  for (let i = 0; i < options.runs; i++) {
    const value = (await bytesPerSecond(link, direction, secondsPerRun)) / 1e9;
    gigabytes += value * secondsPerRun;
    runs.push({ value, reference: (await native.measureMemcpy(messageBytes)) / 1e9 });
  }
  const { user, system } = process.cpuUsage(usage);
  const load = await workerLoad(worker);
  return summarize(`link/grpc/${direction}`, 'GB/s', 'memcpy', runs, {
    messageBytes,
    routerCpuSecondsPerGb: (user + system) / 1e6 / gigabytes,
    workerCpuSecondsPerGb: load.cpuSeconds / gigabytes,
    routerEventLoop: meter(),
    workerEventLoop: load.eventLoopUtilization,
  });
}

/** One gRPC link between two processes over loopback: rows from slab to slab, 1 MiB a token batch. */
export async function benchLink(options: BenchOptions): Promise<BenchResult[]> {
  prepareProcess();
  const limits: LinkWorkerOptions = { hidden, creditBytes: 64 * messageBytes, messageBytesMax: messageBytes };
  const path = fileURLToPath(new URL('./link-worker.js', import.meta.url));
  const worker = fork(path, [JSON.stringify(limits)]);
  try {
    const [message] = (await once(worker, 'message')) as [LinkWorkerMessage];
    const link = await dialLink({
      address: 'address' in message ? message.address : '',
      router: 'bench',
      worker: 'bench',
      modelFingerprint: 'bench',
      epoch: 1,
      token: null,
      messageBytesMax: messageBytes,
      transport: 'grpc',
      log: createLogger('router', 'bench', 'warn'),
    });
    const results = [];
    for (const direction of ['one-way', 'echo'] as const) {
      results.push(await measure(link, worker, direction, options));
    }
    link.close();
    return results;
  } finally {
    worker.kill();
  }
}
