import { callSizes, rowsFrom } from '../common/call-sizes.js';
import { exactly, likeFactor, MeasuredRate, type Rate, usualRates } from './rates.js';

/** How fast calls of about the same size were computed. */
export interface SizeRate {
  /** The fewest of one call, which names the size. */
  rows: number;
  rowsPerSecond: number;
  /** Standard error of that. */
  error: number;
}

/** How fast a worker computed. Of calls of few rows it computes far fewer a second than of long ones: so workers are compared size by size. */
export interface Speed {
  /** Of all sizes; null: not measured. */
  rowsPerSecond: number | null;
  sizes: readonly SizeRate[];
}

/** What a worker has computed since some time, as it reports it. */
export interface Computed {
  rowsComputed: number;
  computeSeconds: number;
  rowsBySize: readonly number[];
  secondsBySize: readonly number[];
}

/** About the last fifty reports that have calls of a size decide how fast it is. */
const measuredDecay = 0.98;

/** Measures the speed of a worker by its reports. */
export class SpeedMeter {
  private readonly all = new MeasuredRate(measuredDecay);
  /** Null: something was measured since it was told. */
  private told: Speed | null = null;
  private readonly bySize = Array.from({ length: callSizes }, () => new MeasuredRate(measuredDecay));

  /** Takes what it computed from one report to the next. */
  add(before: Computed, after: Computed): void {
    const add = (rate: MeasuredRate, rows: number, seconds: number) => {
      if (!(rows > 0 && seconds > 0)) return;
      rate.add(rows, seconds);
      this.told = null;
    };
    add(this.all, after.rowsComputed - before.rowsComputed, after.computeSeconds - before.computeSeconds);
    for (const [size, rate] of this.bySize.entries()) {
      const of = (sums: readonly number[]) => sums[size] ?? 0;
      const rows = of(after.rowsBySize) - of(before.rowsBySize);
      add(rate, rows, of(after.secondsBySize) - of(before.secondsBySize));
    }
  }

  get speed(): Speed {
    if (this.told !== null) return this.told;
    const sizes = this.bySize.flatMap(({ rate }, size): SizeRate[] => {
      if (rate === null || rate.error === Number.POSITIVE_INFINITY) return [];
      return [{ rows: rowsFrom(size), rowsPerSecond: rate.value, error: rate.error }];
    });
    this.told = { rowsPerSecond: this.all.rate?.value ?? null, sizes };
    return this.told;
  }
}

/** Rates of equal workers at one size differ by so much of them, for not all calls of a size have as many rows, and that does not lessen with more reports. */
const sizeError = 0.1;
/** Before anything is measured, speeds are taken to differ by so much of them: what is hardly measured is drawn to the speed of the others. */
const speedError = 0.5;
/** In each round every worker is compared with the others; the last ones change nothing that matters. */
const roundsMax = 100;
const settled = 1e-3;

/**
 * Rows a second to plan with. Workers that computed calls of the same sizes differ as they did at those; who differs by no more than chance does, or by less than `likeFactor`,
 * and who shares no size with others, is as fast as the median. `assumed`: that, where nothing was measured.
 */
export function plannedRates(speeds: readonly Speed[], assumed: number): number[] {
  const measured = speeds.map(({ rowsPerSecond }) => exactly(rowsPerSecond));
  const [usual] = usualRates([null, ...measured], assumed, 1);
  const [median, ...factors] = usualRates([null, ...comparedSpeeds(speeds)], 1, likeFactor.rowsPerSecond);
  return factors.map((factor) => usual! * (factor / median!));
}

/** A rate at one size as a logarithm, for speeds are factors, and the inverse of its variance. */
interface Point {
  readonly size: { weight: number; sum: number };
  readonly log: number;
  readonly weight: number;
}

/** How many times as fast each worker is as the others at the sizes that it shares with them; null: it shares none. */
function comparedSpeeds(speeds: readonly Speed[]): (Rate | null)[] {
  const points = pointsOf(speeds);
  const logs = new Float64Array(speeds.length);
  const known = new Float64Array(speeds.length);
  for (let round = 0, most = 1; round < roundsMax && most > settled; round += 1) {
    most = 0;
    for (const [worker, own] of points.entries()) {
      let sum = 0;
      known[worker] = 0;
      for (const { size, log, weight } of own) {
        const others = size.weight - weight;
        const shared = (weight * others) / size.weight;
        known[worker]! += shared;
        sum += shared * (log - (size.sum - weight * (log - logs[worker]!)) / others);
      }
      const change = sum / (known[worker]! + speedError ** -2) - logs[worker]!;
      for (const { size, weight } of own) size.sum -= weight * change;
      logs[worker]! += change;
      most = Math.max(most, Math.abs(change));
    }
  }
  return points.map((own, worker) => {
    const value = Math.exp(logs[worker]!);
    return own.length === 0 ? null : { value, error: value / Math.sqrt(known[worker]!) };
  });
}

/** By worker, at sizes that several have. A size has the sums of all its points: weights, and weighted logarithms less the logarithms of the workers' speeds. */
function pointsOf(speeds: readonly Speed[]): Point[][] {
  const workersOf = new Map<number, number>();
  const sizes = new Map<number, Point['size']>();
  for (const { rows } of speeds.flatMap((speed) => speed.sizes)) {
    workersOf.set(rows, (workersOf.get(rows) ?? 0) + 1);
    sizes.set(rows, { weight: 0, sum: 0 });
  }
  return speeds.map((speed) =>
    speed.sizes
      .filter(({ rows }) => workersOf.get(rows)! > 1)
      .map(({ rows, rowsPerSecond, error }) => {
        const size = sizes.get(rows)!;
        const log = Math.log(rowsPerSecond);
        const weight = 1 / (sizeError ** 2 + (error / rowsPerSecond) ** 2);
        size.weight += weight;
        size.sum += weight * log;
        return { size, log, weight };
      }),
  );
}
