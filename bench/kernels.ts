import { type GateWeights, native, type RoutedRows, type Slab } from '../native/index.js';
import { softmaxRouting } from '../services/model/synthetic.js';
import { oneCopyEach } from './one-copy.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';

const hidden = 4096;
const rowCount = 1024;
const experts = 16;
const workers = 4;
const rowBytes = hidden * 2;
const callsPerRun = 12;
const slabBytes = 4 * 1024 ** 3;

const routing = softmaxRouting(2);
const weightPlace = { kind: 'synthetic', seed: 1, stream: 7, scale: 0.03, center: 0 } as const;

interface Held {
  release(): void;
}

/** Bytes read plus bytes written a second by `call`, which touches `bytes` each time: the median of several calls, as of memcpy. */
async function bytesPerSecond(bytes: number, call: () => Promise<Held[]>): Promise<number> {
  for (const held of await call()) held.release();
  const rates: number[] = [];
  for (let i = 0; i < callsPerRun; i++) {
    const start = performance.now();
    for (const held of await call()) held.release();
    rates.push(bytes / ((performance.now() - start) / 1000));
  }
  return median(rates);
}

/** memcpy reads and writes each byte: twice its copy rate, in the same bytes as the kernels. */
async function memcpyTraffic(): Promise<number> {
  return 2 * (await native.measureMemcpy(rowCount * rowBytes));
}

async function compare(
  id: string,
  options: BenchOptions,
  bytes: number,
  call: () => Promise<Held[]>,
): Promise<BenchResult> {
  const runs = [];
  for (let i = 0; i < options.runs; i++) {
    const value = (await bytesPerSecond(bytes, call)) / 1e9;
    runs.push({ value, reference: (await memcpyTraffic()) / 1e9 });
  }
  return summarize(id, 'GB/s', 'memcpy', runs, { bytesPerCall: bytes });
}

interface Routing {
  rows: Slab;
  rowCount: number;
  gate: GateWeights;
  /** Its RMSNorm's weight; null: none. */
  norm: Slab | null;
  workers: number;
}

function route({ rows, rowCount, gate, norm, workers }: Routing): Promise<RoutedRows> {
  return native.routeRows({
    rows,
    rowCount,
    hidden: gate.hidden,
    norm: norm && { weight: norm, epsilon: 1e-6 },
    gate: { weights: gate, bias: null },
    table: null,
    copies: oneCopyEach(Uint32Array.from({ length: gate.experts }, (_, expert) => expert % workers)),
    pace: null,
    workers,
    limits: null,
    weighted: false,
  });
}

function pack(rows: Slab, { groups }: RoutedRows): Promise<Slab[]> {
  return Promise.all(
    groups.map(({ tokens: indices }) => native.packRows({ rows, hidden, indices, tailBytes: 0 })),
  );
}

/** Routes once; returns what is to be released. */
async function routeOnce(routing: Routing): Promise<Held[]> {
  const routed = await route(routing);
  return routed.normed === null ? [routed] : [routed, routed.normed];
}

/** As many experts, of tokens as long, as DeepSeek-V3 has: what counts there is arithmetic. */
const largeGate = { experts: 256, hidden: 7168, topK: 8, rowCount: 512 };

function gateOf(weight: Slab, experts: number, hidden: number, topK: number) {
  const routing = softmaxRouting(topK);
  return native.createGate({ weight, experts, hidden, logitBias: null, selectionBias: null, routing });
}

function gateWeight(experts: number, hidden: number): Promise<Slab> {
  return native.readFloats({ ...weightPlace, rows: experts, columns: hidden });
}

function tokens(rowCount: number, hidden: number): Promise<Slab> {
  return native.synthesizeTokens({ seed: 1, firstToken: 0, count: rowCount, hidden, skew: 0, topics: 64 });
}

/** The gate of a large model beside the core's float32 peak. */
async function benchLargeGate(options: BenchOptions): Promise<BenchResult> {
  const { experts, hidden, topK, rowCount } = largeGate;
  const [rows, weight] = [await tokens(rowCount, hidden), await gateWeight(experts, hidden)];
  const gate = gateOf(weight, experts, hidden, topK);
  const operations = 2 * rowCount * hidden * experts;
  const runs = [];
  for (let i = 0; i < options.runs; i++) {
    const rate = await bytesPerSecond(operations, () =>
      routeOnce({ rows, rowCount, gate, norm: null, workers }),
    );
    runs.push({ value: rate / 1e9, reference: (await native.measureFma()) / 1e9 });
  }
  gate.release();
  for (const slab of [rows, weight]) slab.release();
  return summarize('kernels/gate-256x7168', 'GFLOP/s', 'float32 FMA', runs, { ...largeGate });
}

/** What a router does with one chunk of 1,024 x 4,096, called as it calls them, on one thread. */
export async function benchKernels(options: BenchOptions): Promise<BenchResult[]> {
  native.configure({ slabBytesMax: slabBytes, threads: 1 });
  const rows = await tokens(rowCount, hidden);
  const weight = await gateWeight(experts, hidden);
  const norm = await native.readTensor({ ...weightPlace, rows: 1, columns: hidden, center: 1 });
  const gate = gateOf(weight, experts, hidden, routing.topK);
  const routed = await route({ rows, rowCount, gate, norm: null, workers });
  const packedBytes = routed.groups.reduce((sum, group) => sum + group.rowCount * rowBytes, 0);
  const parts = routed.groups.map(({ rowIndices }) => native.allocateSlab(rowIndices.length * rowBytes));
  for (const part of parts) part.view().fill(0x3f);

  const chunkBytes = rowCount * rowBytes;
  const combine = { routed, mode: 'exact', hidden, weighted: true, residual: rows, parts } as const;
  const results = [
    // Reads the rows and writes them normalised.
    await compare('kernels/route', options, 2 * chunkBytes, () =>
      routeOnce({ rows, rowCount, gate, norm, workers }),
    ),
    await compare('kernels/pack', options, 2 * packedBytes, () => pack(rows, routed)),
    // Reads topK result rows and the residual of each token, writes one row.
    await compare('kernels/combine', options, chunkBytes * (routing.topK + 2), async () => [
      (await native.combineRows(combine)).rows,
    ]),
  ];
  results.push(await benchLargeGate(options));
  for (const held of [gate, rows, weight, norm, routed, ...parts]) held.release();
  return results;
}
