import { availableParallelism } from 'node:os';
import { type Expert, type ExpertBackend, type ExpertInput, native, type Slab } from '../native/index.js';
import { LocalCluster } from '../services/cli/local-cluster.js';
import type { Session, SwitchyardClient } from '../services/client/index.js';
import { openModel } from '../services/model/load.js';
import { type PresetName, presets } from '../services/model/synthetic.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';

interface Case {
  preset: PresetName;
  /** Tokens of a batch. */
  sizes: readonly number[];
}

const cases: readonly Case[] = [
  { preset: 'tiny', sizes: [1, 16, 64, 256] },
  { preset: 'fine', sizes: [1, 64] },
];
/** Until code is compiled and memory is mapped. */
const warmMs = 2_000;
const runMs = 2_000;
/** Batches under way where their rate is measured. */
const lanes = 8;
const readyTimeoutMs = 300_000;

/** The experts of all layers on one thread, and nothing around them: rows are in memory and grouped. */
class BareLayers {
  private constructor(
    private readonly backend: ExpertBackend,
    private readonly layers: Expert[][],
    private readonly rows: Slab,
    private readonly hidden: number,
    private readonly topK: number,
  ) {}

  static async open(preset: PresetName, tokens: number): Promise<BareLayers> {
    const model = await openModel({ kind: 'synthetic', spec: presets[preset].model });
    const { hidden, layers, topK } = model.spec;
    const backend = native.createCpuBackend({ threads: 1 });
    const loaded: Expert[][] = [];
    for (const { layer, experts } of layers) {
      const own: Expert[] = [];
      for (let expert = 0; expert < experts; expert += 1)
        own.push(await backend.load(model.expert(layer, expert)));
      loaded.push(own);
    }
    model.close();
    const options = { seed: 3, firstToken: 0, count: tokens, hidden, skew: 0, topics: 64 };
    return new BareLayers(backend, loaded, await native.synthesizeTokens(options), hidden, topK);
  }

  /** Milliseconds of one batch: each token goes to its experts, dealt in turn, layer after layer. */
  async run(tokens: number): Promise<number> {
    const output = native.allocateSlab(tokens * this.topK * this.hidden * 2);
    const started = performance.now();
    for (const experts of this.layers) {
      const chosen: number[][] = experts.map(() => []);
      for (let slot = 0; slot < tokens * this.topK; slot += 1)
        chosen[slot % experts.length]!.push(Math.floor(slot / this.topK));
      let outputRow = 0;
      const calls = chosen.flatMap((rows, expert) => {
        if (rows.length === 0) return [];
        const indices = Uint32Array.from(rows);
        const input: ExpertInput = { rows: this.rows, indices, output, outputRow, inputWeights: null };
        outputRow += rows.length;
        return [{ expert: experts[expert]!, inputs: [input] }];
      });
      await this.backend.forward(calls);
    }
    const ms = performance.now() - started;
    output.release();
    return ms;
  }

  close(): void {
    for (const experts of this.layers) for (const expert of experts) expert.release();
    this.rows.release();
    this.backend.close();
  }
}

/** Calls `run` again and again for about `ms` milliseconds; the milliseconds of each call. */
async function repeat(ms: number, run: () => Promise<unknown>): Promise<number[]> {
  const times: number[] = [];
  for (const end = performance.now() + ms; performance.now() < end; ) {
    const started = performance.now();
    await run();
    times.push(performance.now() - started);
  }
  return times;
}

const percentile = (times: readonly number[], share: number) =>
  [...times].sort((a, b) => a - b)[Math.floor((times.length - 1) * share)]!;

/** Batches per second with `lanes` under way. */
async function rate(session: Session, rows: Uint8Array): Promise<number> {
  const started = performance.now();
  const all = await Promise.all(
    Array.from({ length: lanes }, () => repeat(runMs, () => session.forward(rows))),
  );
  return all.reduce((sum, times) => sum + times.length, 0) / ((performance.now() - started) / 1000);
}

async function measure(
  { preset }: Case,
  tokens: number,
  client: SwitchyardClient,
  { runs }: BenchOptions,
): Promise<BenchResult> {
  const bare = await BareLayers.open(preset, tokens);
  const session = client.session();
  const rows = new Uint8Array(tokens * presets[preset].model.hidden * 2).fill(0x3c);
  const once = async () => (await client.forward(rows)).summary;
  await repeat(warmMs, () => session.forward(rows));
  await repeat(warmMs / 2, () => bare.run(tokens));
  const pairs: { value: number; reference: number }[] = [];
  const [late, rates, alone]: [number[], number[], number[]] = [[], [], []];
  for (let run = 0; run < runs; run += 1) {
    const reference = median(await repeat(runMs, () => bare.run(tokens)));
    const times = await repeat(runMs, () => session.forward(rows));
    pairs.push({ value: median(times), reference });
    late.push(percentile(times, 0.99));
    rates.push(await rate(session, rows));
    alone.push(median(await repeat(runMs, once)));
  }
  await session.close();
  bare.close();
  return summarize(`latency/${preset}-${tokens}`, 'ms', 'bare experts', pairs, {
    p99Milliseconds: median(late),
    batchesPerSecond: median(rates),
    forwardMilliseconds: median(alone),
  });
}

/** How long small batches take through a session: client, coordinator with its router, one worker, all on this machine's cores. */
async function benchLatency(test: Case, options: BenchOptions): Promise<BenchResult[]> {
  const node = { port: 0, metricsPort: 0 };
  const cluster = await LocalCluster.start({
    workers: 1,
    routers: 0,
    threads: 1,
    coordinator: { ...node, preset: test.preset, threads: availableParallelism() },
    router: node,
    worker: node,
    readyTimeoutMs,
  });
  try {
    const results: BenchResult[] = [];
    for (const tokens of test.sizes) results.push(await measure(test, tokens, cluster.client, options));
    return results;
  } finally {
    await cluster.stop();
  }
}

export const latencyGroups: Record<string, (options: BenchOptions) => Promise<BenchResult[]>> =
  Object.fromEntries(
    cases.map((test) => [`latency/${test.preset}`, (options: BenchOptions) => benchLatency(test, options)]),
  );
