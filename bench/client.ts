import { type ChildProcess, fork } from 'node:child_process';
import { builtFile } from '../native/locate.js';
import { LocalProcess } from '../services/cli/local-process.js';
import { SwitchyardClient } from '../services/client/index.js';
import { prepareProcess } from '../services/common/process.js';
import { nativeRuntime } from '../services/runtime/native.js';
import { repeatedRows, submit } from './batch.js';
import type { IdentityWorkerOptions } from './identity-worker.js';
import { memcpyPastCaches } from './memcpy.js';
import { type BenchOptions, type BenchResult, summarize } from './report.js';
import { transportsHere } from './serve-links.js';

const hidden = 4096;
const rowBytes = hidden * 2;
const workers = 2;
const tokens = { ucx: 131_072, grpc: 32_768 };
/** Batches before those that count: what runs once a chunk takes V8 a thousand chunks to compile, and half as much again until then. */
const warmBatches = { ucx: 12, grpc: 4 };
const readyTimeoutMs = 30_000;
const stopMs = 5_000;

function startWorker(options: IdentityWorkerOptions): ChildProcess {
  const path = builtFile('bench', 'identity-worker.js');
  return fork(path, [JSON.stringify(options)]);
}

/** GB/s of rows from a client through norm, gate, two workers that return them, and back to it, beside memcpy. */
async function benchOver(transport: 'ucx' | 'grpc', options: BenchOptions): Promise<BenchResult> {
  const coordinator = new LocalProcess(
    'coordinator',
    'coordinator',
    {
      preset: 'tiny',
      hidden,
      ffn: 32,
      experts: 2,
      topK: 1,
      layers: 1,
      workers,
      port: 0,
      metricsPort: 0,
      threads: 1,
    },
    { SWITCHYARD_TRANSPORT: transport },
    () => {},
  );
  const children: ChildProcess[] = [];
  let client: SwitchyardClient | null = null;
  try {
    const { address } = await coordinator.listening;
    for (let i = 0; i < workers; i++)
      children.push(startWorker({ coordinator: address, name: `worker-${i}` }));
    client = await SwitchyardClient.connect(address, { transport });
    await client.waitUntilReady(readyTimeoutMs);
    const rows = await repeatedRows(hidden, tokens[transport]);
    for (let batch = 0; batch < warmBatches[transport]; batch++) await submit(client, rows, {});
    const meter = nativeRuntime.usage.eventLoopMeter();
    const runs = [];
    for (let run = 0; run < options.runs; run++) {
      const value = ((await submit(client, rows, {})) * rowBytes) / 1e9;
      runs.push({ value, reference: await memcpyPastCaches() });
    }
    return summarize(`link/client-${transport}`, 'GB/s', 'memcpy', runs, {
      clientEventLoop: meter(),
      workers,
    });
  } finally {
    client?.destroy();
    await coordinator.stop(stopMs);
    for (const child of children) child.kill();
  }
}

/** A client's rows through a cluster whose experts do nothing. */
export async function benchClient(options: BenchOptions): Promise<BenchResult[]> {
  prepareProcess();
  const results = [];
  for (const transport of transportsHere()) results.push(await benchOver(transport, options));
  return results;
}
