import type { Copies, PlanInput, PlanLayer } from '../services/placement/input.js';
import { usualLimits } from '../services/placement/loading.js';
import { plan } from '../services/placement/plan.js';
import { splitRows } from '../services/placement/split.js';
import { type EplbShape, eplb } from './peers/eplb.js';
import { randomOf } from './random.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';

interface Case {
  id: string;
  layers: number;
  experts: number;
  topK: number;
  workers: number;
  hosts: number;
  /** Copies of a layer beyond one of each expert; with them every worker has as many. */
  replicaSlots: number;
  /** As EPLB may plan: by groups within nodes, and without them. */
  shapes: readonly Pick<EplbShape, 'groups' | 'nodes'>[];
}

const cases: readonly Case[] = [
  {
    id: 'balance/zipf-64x8',
    layers: 1,
    experts: 64,
    topK: 2,
    workers: 8,
    hosts: 2,
    replicaSlots: 8,
    shapes: [{ groups: 1, nodes: 1 }],
  },
  // DeepSeek-V3 runs with 32 redundant experts; workers that hold as many each need a multiple of 64 here.
  {
    id: 'balance/deepseek-64',
    layers: 58,
    experts: 256,
    topK: 8,
    workers: 64,
    hosts: 8,
    replicaSlots: 64,
    shapes: [
      { groups: 8, nodes: 8 },
      { groups: 1, nodes: 1 },
    ],
  },
];

/** Zipf's. */
export const exponent = 1.2;
const expertBytes = 44 * 1024 ** 2;
const rowsPerSecond = 100_000;
const loadBytesPerSecond = 1024 ** 3;
/** Share of the workers' time that the load would take if it were even. */
const busy = 0.5;
const horizonSeconds = 600;
/** For the load of single chunks, which is never quite that of the plan. */
const chunkTokens = 4096;
const chunksSampled = 20;

/** Rows a second by Zipf's law, in an order that chance gives. */
function zipf({ experts, workers }: Case, random: () => number): Float64Array {
  const ranks = Array.from({ length: experts }, (_, index) => ({ rank: index + 1, key: random() }));
  const weights = ranks.sort((a, b) => a.key - b.key).map(({ rank }) => rank ** -exponent);
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return Float64Array.from(weights, (weight) => (weight / sum) * workers * rowsPerSecond * busy);
}

/** The loads on a cluster whose experts are dealt in turn, one copy of each. */
function inputOf(test: Case, random: () => number, copiesMin: number): PlanInput {
  const { layers, experts, topK, workers, hosts, replicaSlots } = test;
  const slots = (layers * (copiesMin * experts + replicaSlots)) / workers;
  const loads = Array.from({ length: layers }, (_, layer): PlanLayer => {
    return { layer, expertBytes, loads: zipf(test, random), choices: null };
  });
  return {
    workers: Array.from({ length: workers }, (_, index) => ({
      name: `worker-${index}`,
      host: `host-${Math.floor((index * hosts) / workers)}`,
      memoryBytes: slots * expertBytes,
      rowsPerSecond,
      loadBytesPerSecond,
    })),
    layers: loads,
    topK,
    present: loads.map((_, layer) =>
      Array.from({ length: experts }, (_, expert) => [(layer * experts + expert) % workers]),
    ),
    copiesMin,
    replicaSlots,
    limits: usualLimits,
    horizonSeconds,
    crossingSeconds: 0,
  };
}

/** (max − mean)/mean */
export function imbalance(workerRows: Float64Array): number {
  const mean = workerRows.reduce((sum, rows) => sum + rows, 0) / workerRows.length;
  return Math.max(...workerRows) / mean - 1;
}

/** Rows of each worker where every copy of an expert gets the same part; a worker may have several. */
export function evenShares(loads: Float64Array, copies: Copies[number], workers: number): Float64Array {
  const rows = new Float64Array(workers);
  for (const [expert, holders] of copies.entries())
    for (const worker of holders) rows[worker]! += loads[expert]! / holders.length;
  return rows;
}

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Imbalance of every layer. */
function eplbImbalance(test: Case, input: PlanInput): { copies: Copies; imbalances: number[] } {
  const plans = test.shapes.map((shape) => {
    const all = { ...shape, replicas: test.experts + test.replicaSlots, gpus: test.workers };
    const copies = input.layers.map(({ loads }) => eplb(loads, all));
    const imbalances = input.layers.map(({ loads }, layer) =>
      imbalance(evenShares(loads, copies[layer]!, test.workers)),
    );
    return { copies, imbalances };
  });
  return plans.reduce((best, one) => (mean(one.imbalances) < mean(best.imbalances) ? one : best));
}

/** Rows per expert of one chunk, each chosen by the loads. */
function chunkOf(loads: Float64Array, topK: number, random: () => number): Float64Array {
  const total = loads.reduce((sum, rows) => sum + rows, 0);
  const rows = new Float64Array(loads.length);
  for (let row = 0; row < chunkTokens * topK; row += 1) {
    let rest = random() * total;
    let expert = 0;
    while (expert < loads.length - 1 && rest >= loads[expert]!) rest -= loads[expert++]!;
    rows[expert]! += 1;
  }
  return rows;
}

function timed<T>(work: () => T): { result: T; milliseconds: number } {
  const started = performance.now();
  const result = work();
  return { result, milliseconds: performance.now() - started };
}

/** How even the workers are by a plan and by EPLB's, for the same loads. */
function measure(test: Case, random: () => number) {
  const input = inputOf(test, random, 1);
  const { result: planned, milliseconds } = timed(() => plan(input));
  const twoCopies = timed(() => plan(inputOf(test, random, 2)));
  const ours = planned.predicted.target.map((layer) => layer.imbalance);
  const theirs = eplbImbalance(test, input);
  const rates = new Float64Array(test.workers).fill(rowsPerSecond);
  const chunks = Array.from({ length: chunksSampled }, () => {
    const rows = chunkOf(input.layers[0]!.loads, test.topK, random);
    return {
      ours: imbalance(splitRows(rows, rates, planned.target[0]!).workerRows),
      theirs: imbalance(evenShares(rows, theirs.copies[0]!, test.workers)),
    };
  });
  return {
    value: mean(ours),
    reference: mean(theirs.imbalances),
    details: {
      present: mean(planned.predicted.present.map((layer) => layer.imbalance)),
      worstLayer: Math.max(...ours),
      ofChunk: mean(chunks.map((chunk) => chunk.ours)),
      'ofChunk EPLB': mean(chunks.map((chunk) => chunk.theirs)),
      copiesToLoad: planned.copiesToLoad,
      planMilliseconds: milliseconds,
      'planMilliseconds two copies': twoCopies.milliseconds,
    },
  };
}

async function benchBalance(test: Case, { runs }: BenchOptions): Promise<BenchResult[]> {
  const measured = Array.from({ length: runs }, (_, run) => measure(test, randomOf(run + 1)));
  const pairs = measured.map(({ value, reference }) => ({ value, reference }));
  const names = Object.keys(measured[0]!.details) as (keyof ReturnType<typeof measure>['details'])[];
  const details = names.map((name) => [name, median(measured.map((one) => one.details[name]))] as const);
  return [summarize(test.id, 'imbalance', 'EPLB', pairs, Object.fromEntries(details))];
}

export const balanceGroups: Record<string, (options: BenchOptions) => Promise<BenchResult[]>> =
  Object.fromEntries(cases.map((test) => [test.id, (options: BenchOptions) => benchBalance(test, options)]));
