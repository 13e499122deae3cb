import { type Expert, type ExpertBackend, native, type TensorSource } from '../native/index.js';
import { usableCores } from '../services/common/machine.js';
import { type Peer, startNative, startPython } from './peer.js';
import { type BenchOptions, type BenchResult, summarize } from './report.js';
import { type Call, cpuSeconds, ofBound, summarizeTurns, takeTurns } from './turns.js';

export interface Shape {
  activation: 'swiglu' | 'gelu';
  hidden: number;
  ffn: number;
}

const shapes: Shape[] = [
  { activation: 'gelu', hidden: 4096, ffn: 16384 },
  { activation: 'swiglu', hidden: 4096, ffn: 1536 },
  { activation: 'swiglu', hidden: 1024, ffn: 2816 },
];
const rowCounts = [1, 16, 128, 512, 2048];
/** With which two threads are measured beside one. */
const threadRows = 512;
/** Few rows are bound by memory, so experts take turns until no cache holds them all. */
const workingSetBytes = 256e6;
const expertsOf = (shape: Shape) => Math.max(1, Math.floor(workingSetBytes / weightBytes(shape)));
/** Calls with few rows are short: more of them make up one counted run. */
const turnsPerRun = (rows: number) => (rows <= 16 ? 10 : rows <= 128 ? 4 : 1);

/** Bytes of one expert's weights: as many as operations for one row. */
export function weightBytes({ activation, hidden, ffn }: Shape): number {
  return 2 * (activation === 'swiglu' ? 3 : 2) * hidden * ffn;
}

/** A matrix of an expert or a gate, scaled so that outputs stay as large as inputs. */
export function syntheticMatrix(stream: number, rows: number, columns: number): TensorSource {
  return { kind: 'synthetic', seed: 1, stream, rows, columns, scale: 1 / Math.sqrt(columns), center: 0 };
}

/** Experts of one shape with weights of their own. */
export async function loadExperts(backend: ExpertBackend, shape: Shape, count: number): Promise<Expert[]> {
  const { activation, hidden, ffn } = shape;
  const experts: Expert[] = [];
  for (let stream = 0; stream < 3 * count; stream += 3) {
    const gate = activation === 'swiglu' ? syntheticMatrix(stream, ffn, hidden) : null;
    const up = syntheticMatrix(stream + 1, ffn, hidden);
    const down = syntheticMatrix(stream + 2, hidden, ffn);
    experts.push(await backend.load({ activation, gate, up, down }));
  }
  return experts;
}

/** Experts over memory of `rowsMax` rows. `forward` is for one thread; `compute` takes its time by the clock. */
export async function holdExperts(
  { hidden }: Shape,
  rowsMax: number,
  load: (backend: ExpertBackend) => Promise<Expert[]>,
  threads = 1,
) {
  const backend = native.createCpuBackend({ threads });
  const experts = await load(backend);
  const rows = await native.synthesizeTokens({
    seed: 3,
    firstToken: 0,
    count: rowsMax,
    hidden,
    skew: 0,
    topics: 64,
  });
  const output = native.allocateSlab(rowsMax * hidden * 2);
  const indices = Uint32Array.from({ length: rowsMax }, (_, row) => row);
  const compute: Call = async (count, expert) => {
    const input = { rows, indices: indices.subarray(0, count), output, outputRow: 0, inputWeights: null };
    const [time] = await backend.forward([{ expert: experts[expert]!, inputs: [input] }]);
    return time!.seconds;
  };
  const forward: Call = async (count, expert) => {
    let ownSeconds = 0;
    const seconds = await cpuSeconds(async () => {
      ownSeconds = await compute(count, expert);
    });
    // The process also made the call, and the clock of the one thread that computed also counts other programs.
    return Math.min(seconds, ownSeconds);
  };
  const close = () => {
    for (const held of [...experts, rows, output]) held.release();
    backend.close();
  };
  return { isa: backend.description.detail, bytes: experts[0]!.bytes, forward, compute, close };
}

/** The peers that are there, by name. KTransformers computes SwiGLU alone; beside GELU its time counts per operation. */
function openPeers(limits: Peer, python: (Peer | null)[], shape: Shape): Record<string, Call> {
  const [torch, kt] = python;
  const ktShare = weightBytes(shape) / weightBytes({ ...shape, activation: 'swiglu' });
  return {
    ...(torch && { torch: (rows, expert) => torch.ask(rows, expert) }),
    ...(limits.can('onednn') && { onednn: (rows, expert) => limits.ask('onednn', rows, expert) }),
    ...(kt && { kt: async (rows, expert) => ktShare * (await kt.ask(rows, expert)) }),
  };
}

async function benchShape(name: string, shape: Shape, { runs, log }: BenchOptions): Promise<BenchResult[]> {
  native.configure({ slabBytesMax: 2 ** 30, threads: 1 });
  const expertCount = expertsOf(shape);
  const rowsMax = Math.max(...rowCounts);
  const ours = await holdExperts(shape, rowsMax, (backend) => loadExperts(backend, shape, expertCount));
  const sizes = [shape.hidden, shape.ffn, expertCount].map(String);
  const limits = await startNative('experts_peer', [ours.isa, shape.activation, ...sizes], log);
  const python = [
    await startPython('torch', 'torch_ffn.py', [shape.activation, ...sizes], log),
    await startPython('kt', 'kt_ffn.py', [...sizes, String(rowsMax)], log),
  ];
  const peers = openPeers(limits, python, shape);
  const results: BenchResult[] = [];
  for (const rows of rowCounts) {
    const turns = await takeTurns(runs * turnsPerRun(rows), expertCount, rows, ours.forward, peers, limits);
    const work = weightBytes(shape) * rows;
    const result = summarizeTurns(`${name}-${rows}`, work, rows === 1, turns);
    results.push({ ...result, details: { ...result.details, 'of bound': ofBound(rows, work, turns) } });
  }
  ours.close();
  return results;
}

/** Two threads and one take turns. Time is that of the clock, because CPU time does not tell whether threads compute at once. */
async function benchThreads(id: string, shape: Shape, { runs, log }: BenchOptions): Promise<BenchResult[]> {
  if (usableCores() < 2) {
    log(`${id} is left out: there is one core`);
    return [];
  }
  native.configure({ slabBytesMax: 2 ** 30, threads: 1 });
  const expertCount = expertsOf(shape);
  const hold = (threads: number) =>
    holdExperts(shape, threadRows, (backend) => loadExperts(backend, shape, expertCount), threads);
  const [one, two] = [await hold(1), await hold(2)];
  const rate = (seconds: number) => (weightBytes(shape) * threadRows) / seconds / 1e12;
  const turn = async (expert: number) => ({
    reference: rate(await one.compute(threadRows, expert)),
    value: rate(await two.compute(threadRows, expert)),
  });
  // Uncounted, every expert once: fresh memory is slow.
  for (let expert = 0; expert < expertCount; expert++) await turn(expert);
  const turns = [];
  for (let index = 0; index < runs * turnsPerRun(threadRows); index++)
    turns.push(await turn(index % expertCount));
  for (const held of [one, two]) held.close();
  return [summarize(id, 'TFLOP/s', 'one thread', turns)];
}

/**
 * Expert FFNs on one core beside what the core can do at best, oneDNN, PyTorch and KTransformers, all taking turns, and on two
 * cores beside one.
 */
export const expertGroups: Record<string, (options: BenchOptions) => Promise<BenchResult[]>> =
  Object.fromEntries(
    shapes.flatMap((shape) => {
      const name = `experts/${shape.hidden}x${shape.ffn}-${shape.activation}`;
      const threads = `${name}-${threadRows}-2threads`;
      return [
        [name, (options: BenchOptions) => benchShape(name, shape, options)],
        [threads, (options: BenchOptions) => benchThreads(threads, shape, options)],
      ];
    }),
  );
