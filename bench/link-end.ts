/**
 * One end of the link benchmark, as a process of its own. The worker's end is an expert that does nothing: where one row is
 * to be returned for each that came it returns them as they are, otherwise a single row. The router's end does what it
 * is told.
 */
import { native } from '../native/index.js';
import { workerDialer } from '../services/common/grpc-duplex.js';
import { createLogger } from '../services/common/log.js';
import { prepareProcess } from '../services/common/process.js';
import { nativeRuntime } from '../services/runtime/native.js';
import { dialLink } from '../services/transport/dial.js';
import { resultRowCount } from '../services/transport/limits.js';
import type { Link, TokenBatch, TokenBatchResult, TransportChoice } from '../services/transport/link.js';
import { linkKey } from '../services/transport/link-key.js';
import { nativeUcx } from '../services/transport/ucx/port.js';
import { benchSecret, serveLinks } from './serve-links.js';

export interface LinkEndOptions {
  hidden: number;
  creditBytes: number;
  messageBytesMax: number;
  transport: TransportChoice;
  /** Rows over UCX leave the machine encrypted. Default: no. */
  encrypted?: boolean;
  /** The worker that the router dials; null: this is the worker. */
  worker: string | null;
}

export interface LinkTask {
  /** Rows of a token batch. */
  rows: number;
  /** Rows return as they came; otherwise a single row answers. */
  echo: boolean;
  /** Token batches under way. */
  inFlight: number;
  seconds: number;
}

/** What an end used since it was last asked. */
export interface LinkUsage {
  cpuSeconds: number;
  eventLoopUtilization: number;
  bytesCopied: number;
  bytesTaken: number;
}

export interface LinkRates {
  bytesPerSecond: number;
  messagesPerSecond: number;
}

const options = JSON.parse(process.argv[2] ?? '{}') as LinkEndOptions;
const { hidden, creditBytes, messageBytesMax, transport, encrypted = false } = options;
const fingerprint = 'bench';
const name = 'bench';
const log = createLogger(options.worker === null ? 'worker' : 'router', name, 'warn');
prepareProcess();
const slabBytesMax = 4 * creditBytes;
native.configure({ slabBytesMax, threads: 1 });

async function answer({ meta, rows }: TokenBatch): Promise<TokenBatchResult> {
  const seconds = { computeSeconds: 0, queueSeconds: 0 };
  if (resultRowCount(meta) === meta.rowCount) return { ...seconds, rows, rowCount: meta.rowCount };
  rows.release();
  return { ...seconds, rows: native.allocateSlab(meta.hidden * 2, answerTailBytes), rowCount: 1 };
}
const answerTailBytes = 256;
const batchTailBytes = 64 * 1024;

function tokenBatch({ rows, echo }: LinkTask): TokenBatch {
  const entries = echo ? rows : 1;
  return {
    meta: {
      batchId: name,
      chunk: 0,
      layer: 0,
      attempt: 0,
      epoch: 1,
      hidden,
      rowCount: rows,
      deadlineMs: Number.POSITIVE_INFINITY,
      combine: 'exact',
      segments: Uint32Array.of(0, entries),
      rowIndices: Uint32Array.from({ length: entries }, (_, i) => i),
      weights: null,
      traceparent: '',
    },
    rows: native.allocateSlab(rows * hidden * 2, batchTailBytes),
  };
}

/** Writes to the slabs that the task will use: pages that nobody has written are one page of zeros, which is in the cache. */
async function fillSlabs({ rows, inFlight }: LinkTask): Promise<void> {
  const bytes = Buffer.alloc(rows * hidden * 2, 0x3f);
  const slabs = Array.from({ length: inFlight }, () => native.allocateSlab(bytes.byteLength, batchTailBytes));
  for (const slab of slabs) await native.copyIn(bytes, slab, 0);
  for (const slab of slabs) slab.release();
}

async function exchange(link: Link, task: LinkTask): Promise<LinkRates> {
  await fillSlabs(task);
  const { signal } = new AbortController();
  const start = performance.now();
  const until = start + task.seconds * 1000;
  let sent = 0;
  const lane = async () => {
    while (performance.now() < until) {
      const { rows } = await link.exchange(tokenBatch(task), signal);
      rows.release();
      sent += 1;
    }
  };
  await Promise.all(Array.from({ length: task.inFlight }, lane));
  const messagesPerSecond = sent / ((performance.now() - start) / 1000);
  return { messagesPerSecond, bytesPerSecond: messagesPerSecond * task.rows * hidden * 2 };
}

function serve(): Promise<string> {
  const model = { fingerprint, hidden };
  const handler = answer;
  return serveLinks({
    worker: name,
    secret: benchSecret,
    host: '127.0.0.1',
    model: () => model,
    linkWindowBytes: creditBytes,
    slabBytes: slabBytesMax,
    messageBytesMax,
    transport,
    encrypted,
    handler,
    log,
  });
}

function meter(): () => LinkUsage {
  const utilization = nativeRuntime.usage.eventLoopMeter();
  let usage = process.cpuUsage();
  const stats = () => native.ucx?.stats() ?? { bytesCopied: 0, bytesTaken: 0 };
  let before = stats();
  return () => {
    const { user, system } = process.cpuUsage(usage);
    const { bytesCopied, bytesTaken } = stats();
    const used = {
      cpuSeconds: (user + system) / 1e6,
      eventLoopUtilization: utilization(),
      bytesCopied: bytesCopied - before.bytesCopied,
      bytesTaken: bytesTaken - before.bytesTaken,
    };
    usage = process.cpuUsage();
    before = stats();
    return used;
  };
}

export interface LinkEndStarted {
  /** The worker's; empty for a router. */
  address: string;
  /** The router's; empty for a worker. */
  lanes: string;
}

const say = (message: LinkRates | LinkUsage | LinkEndStarted) => process.send?.(message);
const usage = meter();
const link =
  options.worker === null
    ? null
    : await dialLink({
        dial: workerDialer(null),
        ucx: nativeUcx(encrypted),
        runtime: nativeRuntime,
        address: options.worker,
        router: name,
        host: '127.0.0.1',
        worker: name,
        modelFingerprint: fingerprint,
        epoch: 1,
        key: linkKey(benchSecret, name),
        resultBytesMax: messageBytesMax,
        transport,
        log,
      });
process.on('message', async (question: LinkTask | 'usage') => {
  say(question === 'usage' ? usage() : await exchange(link!, question));
});
process.on('disconnect', () => process.exit(0));
say(link === null ? { address: await serve(), lanes: '' } : { address: '', lanes: link.lanes });
