import { native } from '../native/index.js';
import type { TransportChoice } from '../services/transport/link.js';
import { benchClient } from './client.js';
import { benchDispatch } from './dispatch.js';
import type { LinkRates, LinkTask, LinkUsage } from './link-end.js';
import { type LinkEnd, startLinkEnd } from './link-process.js';
import { runPerftest } from './perftest.js';
import { type BenchOptions, type BenchResult, summarize } from './report.js';

const hidden = 4096;
const rowBytes = hidden * 2;
const mebibyte = 2 ** 20;
const messageBytesMax = 8 * mebibyte;
const creditBytes = 64 * messageBytesMax;
const secondsPerRun = 1.5;
const noPerftest = 'there is no ucx_perftest (Debian: ucx-utils)';
/** Bytes that UCX's own benchmark sends for a figure. */
const perftestBytes = 4 * 1024 ** 3;

interface Way {
  name: string;
  transport: TransportChoice;
  /** UCX_TLS of both ends, and of ucx_perftest beside them; null: what the environment says. */
  ucxTransports: string | null;
  /** Rows are encrypted. Default: no. */
  encrypted?: boolean;
}

const grpc: Way = { name: 'grpc', transport: 'grpc', ucxTransports: null };
const tcp = { name: 'ucx-tcp', transport: 'ucx', ucxTransports: 'tcp,self' } as const;
const ucxWays: readonly (Way & { ucxTransports: string })[] = [
  { name: 'ucx-shm', transport: 'ucx', ucxTransports: 'posix,sysv,cma,self' },
  tcp,
];
const sizes = { '64KiB': mebibyte / 16, '256KiB': mebibyte / 4, '1MiB': mebibyte, '8MiB': 8 * mebibyte };

/** A worker's and a router's end of a link. */
class LinkPair {
  private constructor(
    private readonly worker: LinkEnd,
    private readonly router: LinkEnd,
    readonly lanes: string,
  ) {}

  static async open(way: Way, rowElements: number): Promise<LinkPair> {
    const { transport, ucxTransports, encrypted = false } = way;
    const options = { hidden: rowElements, creditBytes, messageBytesMax, transport, encrypted };
    const worker = startLinkEnd({ ...options, worker: null }, ucxTransports);
    const { address } = await worker.started;
    const router = startLinkEnd({ ...options, worker: address }, ucxTransports);
    const { lanes } = await router.started;
    return new LinkPair(worker, router, lanes);
  }

  run(task: LinkTask): Promise<LinkRates> {
    return this.router.run(task);
  }

  async usage(): Promise<{ router: LinkUsage; worker: LinkUsage }> {
    const [router, worker] = await Promise.all([this.router.usage(), this.worker.usage()]);
    return { router, worker };
  }

  close(): void {
    this.router.close();
    this.worker.close();
  }
}

/** GB/s of rows, sent only or sent and returned, beside UCX's own benchmark, or memcpy where there is none. */
async function throughput(
  pair: LinkPair,
  way: Way,
  id: string,
  bytes: number,
  echo: boolean,
  options: BenchOptions,
): Promise<BenchResult> {
  const inFlight = Math.max(4, Math.min(16, (8 * mebibyte) / bytes));
  const task: LinkTask = { rows: bytes / rowBytes, echo, inFlight, seconds: secondsPerRun };
  await pair.run({ ...task, seconds: secondsPerRun / 4 });
  const peer = echo ? null : way.ucxTransports;
  const runs: { value: number; reference: number }[] = [];
  let referenceName = 'memcpy';
  await pair.usage();
  let moved = 0;
  let messages = 0;
  for (let run = 0; run < options.runs; run++) {
    const rates = await pair.run(task);
    moved += rates.bytesPerSecond * task.seconds;
    messages += rates.messagesPerSecond * task.seconds;
    const perftest =
      peer === null ? null : await runPerftest('ucp_am_bw', peer, bytes, Math.ceil(perftestBytes / bytes));
    if (perftest) referenceName = 'ucx_perftest';
    else if (peer !== null && run === 0) options.log(`${id} is measured beside memcpy, for ${noPerftest}`);
    const reference = perftest?.bytesPerSecond ?? (await native.measureMemcpy(bytes));
    runs.push({ value: rates.bytesPerSecond / 1e9, reference: reference / 1e9 });
  }
  const { router, worker } = await pair.usage();
  const copies = ({ bytesCopied, bytesTaken }: LinkUsage) => (bytesCopied + bytesTaken) / moved;
  return summarize(id, 'GB/s', referenceName, runs, {
    messagesPerSecond: messages / task.seconds / options.runs,
    routerCpuSecondsPerGb: router.cpuSeconds / (moved / 1e9),
    workerCpuSecondsPerGb: worker.cpuSeconds / (moved / 1e9),
    routerEventLoop: router.eventLoopUtilization,
    workerEventLoop: worker.eventLoopUtilization,
    copiesPerByte: copies(worker) + (echo ? copies(router) : 0),
    lanes: pair.lanes,
  });
}

/** Round trips a second of one row of 64 bytes, one after another, beside UCX's own; nothing without that. */
async function roundTrip(
  way: Way & { ucxTransports: string },
  options: BenchOptions,
): Promise<BenchResult[]> {
  const id = `link/${way.name}-64B`;
  const pair = await LinkPair.open(way, 32);
  try {
    const task: LinkTask = { rows: 1, echo: true, inFlight: 1, seconds: secondsPerRun };
    await pair.run(task);
    const runs = [];
    for (let run = 0; run < options.runs; run++) {
      const { messagesPerSecond } = await pair.run(task);
      const perftest = await runPerftest('ucp_am_lat', way.ucxTransports, 64, 100_000);
      if (perftest === null) {
        options.log(`not measured: ${id}, for ${noPerftest}`);
        return [];
      }
      runs.push({ value: messagesPerSecond, reference: 1 / (2 * perftest.latencySeconds) });
    }
    const microseconds = 1e6 / runs[0]!.value;
    return [summarize(id, 'round trips/s', 'ucx_perftest', runs, { microseconds })];
  } finally {
    pair.close();
  }
}

async function sweep(way: Way, cases: Partial<typeof sizes>, options: BenchOptions): Promise<BenchResult[]> {
  const pair = await LinkPair.open(way, hidden);
  try {
    const results = [];
    for (const [size, bytes] of Object.entries(cases)) {
      results.push(await throughput(pair, way, `link/${way.name}-${size}`, bytes, false, options));
    }
    results.push(await throughput(pair, way, `link/${way.name}-echo`, mebibyte, true, options));
    return results;
  } finally {
    pair.close();
  }
}

/** GB/s of rows on an encrypted stream, beside the same without encryption. */
async function encryptedStream(options: BenchOptions): Promise<BenchResult> {
  const [plain, encrypted] = await Promise.all([
    LinkPair.open(tcp, hidden),
    LinkPair.open({ ...tcp, encrypted: true }, hidden),
  ]);
  try {
    const task: LinkTask = { rows: mebibyte / rowBytes, echo: false, inFlight: 8, seconds: secondsPerRun };
    for (const pair of [plain, encrypted]) await pair.run({ ...task, seconds: secondsPerRun / 4 });
    const runs = [];
    for (const pair of [plain, encrypted]) await pair.usage();
    let moved = 0;
    for (let run = 0; run < options.runs; run++) {
      const reference = (await plain.run(task)).bytesPerSecond / 1e9;
      const value = (await encrypted.run(task)).bytesPerSecond / 1e9;
      runs.push({ value, reference });
      moved += value * task.seconds;
    }
    const { router, worker } = await encrypted.usage();
    return summarize('link/tls-1MiB', 'GB/s', 'plain stream', runs, {
      routerCpuSecondsPerGb: router.cpuSeconds / moved,
      workerCpuSecondsPerGb: worker.cpuSeconds / moved,
      lanes: encrypted.lanes,
    });
  } finally {
    plain.close();
    encrypted.close();
  }
}

/** A link between two processes over each way there is: rows from slab to slab. */
export const linkGroups: Record<string, (options: BenchOptions) => Promise<BenchResult[]>> = {
  ...Object.fromEntries(
    ucxWays.map((way) => [
      `link/${way.name}`,
      async (options: BenchOptions) =>
        native.ucx === null
          ? []
          : [...(await sweep(way, sizes, options)), ...(await roundTrip(way, options))],
    ]),
  ),
  'link/tls-1MiB': async (options) =>
    native.describe().ucx?.encrypts ? [await encryptedStream(options)] : [],
  'link/grpc': (options) => sweep(grpc, { '1MiB': sizes['1MiB'] }, options),
  'link/dispatch-combine': benchDispatch,
  'link/client': benchClient,
};
