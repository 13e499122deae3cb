import { cpus, type as osType, release, totalmem } from 'node:os';
import { native } from '../native/index.js';

/** One measured figure beside the limit or peer it was measured against, in the same run. */
export interface BenchResult {
  id: string;
  /** Median over `runs`. */
  value: number;
  unit: string;
  /** What the value is divided by: median, same unit. */
  reference: number;
  referenceName: string;
  /** Median of the run-by-run ratios value / reference. */
  ratio: number;
  runs: { value: number; reference: number }[];
  /** Further figures of the same run, for example event-loop utilisation. */
  details?: Record<string, number | string>;
  /** Ratios that others reach in the same place, each to its own bare reference. */
  peers?: Record<string, number>;
}

export interface BenchReport {
  machine: { cpu: string; cores: number; memoryBytes: number; os: string; node: string; isa: string[] };
  results: BenchResult[];
}

export interface BenchOptions {
  /** Counted runs of each figure. */
  runs: number;
  /** Where to draw what a worker did and when; null: nowhere. */
  timeline: string | null;
  /** Of the worker of cluster/gpu-…; null: the first CUDA device, if there is one. */
  device: string | null;
  log: (line: string) => void;
}

export function median(values: readonly number[]): number {
  if (values.length === 0) throw new Error('median of no values');
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Summarises paired runs: medians of both sides and the median of the ratios, so that drift cancels. */
export function summarize(
  id: string,
  unit: string,
  referenceName: string,
  runs: { value: number; reference: number }[],
  details?: Record<string, number | string>,
): BenchResult {
  const result: BenchResult = {
    id,
    value: median(runs.map((run) => run.value)),
    unit,
    reference: median(runs.map((run) => run.reference)),
    referenceName,
    ratio: median(runs.map((run) => run.value / run.reference)),
    runs,
  };
  if (details) result.details = details;
  return result;
}

export function machine(): BenchReport['machine'] {
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memoryBytes: totalmem(),
    os: `${osType()} ${release()}`,
    node: process.version,
    isa: native.describe().isa,
  };
}

export function formatResult(result: BenchResult): string {
  const figure = (value: number) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));
  const details = Object.entries(result.details ?? {})
    .map(([key, value]) => `${key} ${typeof value === 'number' ? figure(value) : value}`)
    .join(', ');
  const peers = Object.entries(result.peers ?? {})
    .map(([name, ratio]) => `  ${name} ${ratio.toFixed(3)}`)
    .join('');
  return (
    `${result.id.padEnd(28)} ${figure(result.value).padStart(8)} ${result.unit}` +
    `  ÷ ${result.referenceName} ${figure(result.reference)} = ${result.ratio.toFixed(3)}${peers}` +
    (details ? `  (${details})` : '')
  );
}
