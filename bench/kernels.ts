import { type GateResult, native, type Slab } from '../native/index.js';
import { softmaxRouting } from '../services/model/synthetic.js';
import { type BenchOptions, type BenchResult, summarize } from './report.js';

const hidden = 4096;
const rowCount = 1024;
const experts = 16;
const workers = 4;
const rowBytes = hidden * 2;
const callsPerRun = 12;
const slabBytes = 4 * 1024 ** 3;

const routing = softmaxRouting(2);

/** Bytes read plus bytes written a second by `call`, which touches `bytes` each time. */
async function bytesPerSecond(bytes: number, call: () => Promise<Slab[]>): Promise<number> {
  for (const slab of await call()) slab.release();
  const start = performance.now();
  for (let i = 0; i < callsPerRun; i++) for (const slab of await call()) slab.release();
  return (bytes * callsPerRun) / ((performance.now() - start) / 1000);
}

/** memcpy reads and writes each byte: twice its copy rate, in the same bytes as the kernels. */
async function memcpyTraffic(): Promise<number> {
  return 2 * (await native.measureMemcpy(rowCount * rowBytes));
}

async function compare(
  id: string,
  options: BenchOptions,
  bytes: number,
  call: () => Promise<Slab[]>,
): Promise<BenchResult> {
  const runs = [];
  for (let i = 0; i < options.runs; i++) {
    const value = (await bytesPerSecond(bytes, call)) / 1e9;
    runs.push({ value, reference: (await memcpyTraffic()) / 1e9 });
  }
  return summarize(id, 'GB/s', 'memcpy', runs, { bytesPerCall: bytes });
}

function group({ experts, weights }: GateResult, workerOf: Uint32Array) {
  return native.groupRows({
    rowCount,
    topK: routing.topK,
    experts,
    weights,
    workerOf,
    workers,
    limits: null,
  });
}

async function groupAndPack(rows: Slab, routed: GateResult, workerOf: Uint32Array): Promise<Slab[]> {
  const groups = await group(routed, workerOf);
  return Promise.all(
    groups.map(({ tokens: indices }) => native.packRows({ rows, hidden, indices, tailBytes: 0 })),
  );
}

/** As many experts, of tokens as long, as DeepSeek-V3 has: what counts there is arithmetic. */
const largeGate = { experts: 256, hidden: 7168, topK: 8, rowCount: 512 };

function gateOf(weight: Slab, experts: number, hidden: number, topK: number) {
  const routing = softmaxRouting(topK);
  return native.createGate({ weight, experts, hidden, logitBias: null, selectionBias: null, routing });
}

function gateWeight(experts: number, hidden: number): Promise<Slab> {
  const place = { kind: 'synthetic', seed: 1, stream: 7, scale: 0.03, center: 0 } as const;
  return native.readFloats({ ...place, rows: experts, columns: hidden });
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
    const rate = await bytesPerSecond(operations, async () => {
      await native.gateRows({ gate, rows, rowCount, bias: null });
      return [];
    });
    runs.push({ value: rate / 1e9, reference: (await native.measureFma()) / 1e9 });
  }
  gate.release();
  for (const slab of [rows, weight]) slab.release();
  return summarize('kernels/gate-256x7168', 'GFLOP/s', 'float32 FMA', runs, { ...largeGate });
}

/** Gate, pack and combine of one 1,024 x 4,096 chunk, called as the router calls them, on one thread. */
export async function benchKernels(options: BenchOptions): Promise<BenchResult[]> {
  native.configure({ slabBytesMax: slabBytes, threads: 1 });
  const rows = await tokens(rowCount, hidden);
  const weight = await gateWeight(experts, hidden);
  const gate = gateOf(weight, experts, hidden, routing.topK);
  const routed = await native.gateRows({ gate, rows, rowCount, bias: null });
  const workerOf = Uint32Array.from({ length: experts }, (_, expert) => expert % workers);

  const groups = await group(routed, workerOf);
  const packedBytes = groups.reduce((sum, group) => sum + group.rowCount * rowBytes, 0);
  const parts = groups.map((group) => ({
    rows: native.allocateSlab(Math.max(1, group.slots.length) * rowBytes),
    targets: group.slots,
  }));
  for (const part of parts) part.rows.view().fill(0x3f);

  const chunkBytes = rowCount * rowBytes;
  const results = [
    await compare('kernels/gate', options, chunkBytes + experts * rowBytes, async () => {
      await native.gateRows({ gate, rows, rowCount, bias: null });
      return [];
    }),
    await compare('kernels/pack', options, 2 * packedBytes, () => groupAndPack(rows, routed, workerOf)),
    // Reads topK result rows and the residual of each token, writes one row.
    await compare('kernels/combine', options, chunkBytes * (routing.topK + 2), async () => {
      const combined = await native.combineRows({
        mode: 'exact',
        rowCount,
        hidden,
        topK: routing.topK,
        weights: routed.weights,
        residual: rows,
        parts,
      });
      return [combined.rows];
    }),
  ];
  results.push(await benchLargeGate(options));
  gate.release();
  for (const slab of [rows, weight, ...parts.map((part) => part.rows)]) slab.release();
  return results;
}
