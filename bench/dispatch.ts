import { native, type RoutingTable, type Slab } from '../native/index.js';
import { workerDialer } from '../services/common/grpc-duplex.js';
import { createLogger } from '../services/common/log.js';
import { prepareProcess } from '../services/common/process.js';
import { nativeRuntime } from '../services/runtime/native.js';
import { dialLink } from '../services/transport/dial.js';
import type { Link, TokenBatch } from '../services/transport/link.js';
import { linkKey } from '../services/transport/link-key.js';
import { nativeUcx } from '../services/transport/ucx/port.js';
import { type LinkEndOptions, startLinkEnd } from './link-process.js';
import { memcpyPastCaches } from './memcpy.js';
import { oneCopyEach } from './one-copy.js';
import { type BenchOptions, type BenchResult, summarize } from './report.js';
import { benchSecret, transportsHere } from './serve-links.js';

const hidden = 4096;
const rowBytes = hidden * 2;
const rowCount = 1024;
const topK = 2;
const experts = 16;
const workers = 2;
const chunksInFlight = 3;
const secondsPerRun = 2;
const messageBytesMax = topK * rowCount * rowBytes;
const creditBytes = 2 * chunksInFlight * messageBytesMax;

/** A chunk and the experts of its tokens: spread evenly, so that both workers get about as many rows. */
interface Chunk {
  rows: Slab;
  routing: RoutingTable;
}

async function makeChunk(): Promise<Chunk> {
  const rows = await native.synthesizeTokens({
    seed: 1,
    firstToken: 0,
    count: rowCount,
    hidden,
    skew: 0,
    topics: 64,
  });
  // Multipliers prime to the number of experts: a token's two experts differ, and lie on one worker or on both.
  const chosen = Uint32Array.from({ length: rowCount * topK }, (_, i) => {
    const token = i >> 1;
    return i % 2 === 0 ? (token * 5) % experts : (token * 5 + 1 + ((token * 7) % (experts - 1))) % experts;
  });
  const weights = new Float32Array(rowCount * topK).fill(0.5);
  const routing = native.createRoutingTable({ tokens: rowCount, topK, experts: Uint32Array.of(experts) });
  const given = { experts: new Uint8Array(chosen.buffer), weights: new Uint8Array(weights.buffer) };
  await native.writeRouting({ table: routing, first: 0, ...given });
  return { rows, routing };
}

/** What a router does with a gated chunk: group, one token batch a worker, combine. Resolves with the bytes of rows that travelled. */
async function passThrough({ rows, routing }: Chunk, links: readonly Link[]): Promise<number> {
  const workerOf = Uint32Array.from({ length: experts }, (_, expert) => expert % workers);
  const { signal } = new AbortController();
  const routed = await native.routeRows({
    rows,
    rowCount,
    hidden,
    norm: null,
    gate: null,
    table: { routing, layer: 0 },
    copies: oneCopyEach(workerOf),
    pace: null,
    workers,
    limits: null,
    weighted: true,
  });
  const { groups } = routed;
  const answers = await Promise.all(
    groups.map((group) => {
      const batch: TokenBatch = {
        meta: {
          batchId: 'bench',
          chunk: 0,
          layer: 0,
          attempt: 0,
          epoch: 1,
          hidden,
          rowCount: group.rowCount,
          deadlineMs: Number.POSITIVE_INFINITY,
          combine: 'partial',
          segments: group.segments,
          rowIndices: group.rowIndices,
          weights: group.weights,
          traceparent: '',
        },
        rows: rows.share(),
        selected: group.tokens,
      };
      return links[group.worker!]!.exchange(batch, signal);
    }),
  );
  const combined = await native.combineRows({
    routed,
    mode: 'partial',
    hidden,
    weighted: false,
    residual: rows,
    parts: answers.map((answer) => answer.rows),
  });
  for (const held of [combined.rows, routed, ...answers.map((answer) => answer.rows)]) held.release();
  return 2 * rowBytes * groups.reduce((sum, group) => sum + group.rowCount, 0);
}

interface Pace {
  gigabytesPerCpuSecond: number;
  gigabytesPerSecond: number;
}

async function pace(chunk: Chunk, links: readonly Link[], seconds: number): Promise<Pace> {
  const start = performance.now();
  const until = start + seconds * 1000;
  const before = process.cpuUsage();
  let moved = 0;
  const lane = async () => {
    while (performance.now() < until) {
      const bytes = await passThrough(chunk, links);
      moved += bytes;
    }
  };
  await Promise.all(Array.from({ length: chunksInFlight }, lane));
  const { user, system } = process.cpuUsage(before);
  return {
    gigabytesPerCpuSecond: moved / 1e9 / ((user + system) / 1e6),
    gigabytesPerSecond: moved / 1e6 / (performance.now() - start),
  };
}

async function benchOver(transport: 'ucx' | 'grpc', options: BenchOptions): Promise<BenchResult> {
  const limits: LinkEndOptions = { hidden, creditBytes, messageBytesMax, transport, worker: null };
  const ends = Array.from({ length: workers }, () => startLinkEnd(limits, null));
  const chunk = await makeChunk();
  try {
    const links = await Promise.all(
      ends.map(async (end) =>
        dialLink({
          dial: workerDialer(null),
          ucx: nativeUcx(false),
          runtime: nativeRuntime,
          address: (await end.started).address,
          router: 'bench',
          host: '127.0.0.1',
          worker: 'bench',
          modelFingerprint: 'bench',
          epoch: 1,
          key: linkKey(benchSecret, 'bench'),
          resultBytesMax: messageBytesMax,
          transport,
          log: createLogger('router', 'bench', 'warn'),
        }),
      ),
    );
    await pace(chunk, links, secondsPerRun / 4);
    const runs = [];
    let gigabytesPerSecond = 0;
    for (let run = 0; run < options.runs; run++) {
      const measured = await pace(chunk, links, secondsPerRun);
      gigabytesPerSecond += measured.gigabytesPerSecond / options.runs;
      const reference = await memcpyPastCaches();
      runs.push({ value: measured.gigabytesPerCpuSecond, reference });
    }
    const lanes = links[0]!.lanes;
    for (const link of links) link.close();
    const details = { gigabytesPerSecond, workers, lanes };
    return summarize(`link/dispatch-combine-${transport}`, 'GB/s a core', 'memcpy', runs, details);
  } finally {
    chunk.rows.release();
    chunk.routing.release();
    for (const end of ends) end.close();
  }
}

/** Dispatch and combine with experts that return what they get: row bytes sent and returned per second of the router's processor time. */
export async function benchDispatch(options: BenchOptions): Promise<BenchResult[]> {
  prepareProcess();
  const results = [];
  for (const transport of transportsHere()) results.push(await benchOver(transport, options));
  return results;
}
