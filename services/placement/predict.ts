import type { Copies, PlanLayer, PlanWorker } from './input.js';
import { LayerCopies } from './layer-copies.js';

/** What is expected of a layer with its rows split over the copies in the best way. */
export interface LayerPrediction {
  layer: number;
  copies: number;
  /** Experts without a copy, whose rows count nowhere. */
  missing: number;
  /** Seconds a second for which the busiest worker computes this layer. */
  peak: number;
  /** (max − mean)/mean of the time for the rows of each worker, where the mean is what all take together: 0 is even. */
  imbalance: number;
  /** Mean/max of the same: 1 is even. */
  balancedness: number;
  /** To which the rows of a token go. */
  workersPerToken: number;
  hostsPerToken: number;
}

export function predict(
  workers: readonly PlanWorker[],
  layers: readonly PlanLayer[],
  topK: number,
  copies: Copies,
): LayerPrediction[] {
  const rates = Float64Array.from(workers, ({ rowsPerSecond }) => rowsPerSecond);
  const hosts = [...new Set(workers.map(({ host }) => host))];
  const hostOf = Uint32Array.from(workers, ({ host }) => hosts.indexOf(host));
  return layers.map((layer, index) => {
    const placed = new LayerCopies(layer.loads, rates, copies[index]!);
    const { peak, evenLevel } = placed;
    return {
      layer: layer.layer,
      copies: placed.count,
      missing: placed.workersOf.filter(({ length }) => length === 0).length,
      peak,
      imbalance: evenLevel > 0 ? peak / evenLevel - 1 : 0,
      balancedness: peak > 0 ? evenLevel / peak : 1,
      workersPerToken: workersPerToken(placed, layer, topK, workers.length),
      hostsPerToken: placesPerToken(placed, layer, topK, hostOf, hosts.length),
    };
  });
}

/** To how many workers the rows of a token go on average. */
export function workersPerToken(
  placed: LayerCopies,
  layer: PlanLayer,
  topK: number,
  workers: number,
): number {
  return placesPerToken(
    placed,
    layer,
    topK,
    Uint32Array.from({ length: workers }, (_, index) => index),
    workers,
  );
}

/**
 * In how many places (workers or hosts) a token's rows are computed on average: over the sampled tokens, or, without them, for different experts chosen
 * by chance, about as often as their loads say. A replicated expert's rows go to its copies by their shares.
 */
function placesPerToken(
  placed: LayerCopies,
  { loads, choices }: PlanLayer,
  topK: number,
  placeOf: Uint32Array,
  places: number,
): number {
  const shares = placed.workersOf.map((holders, expert) => {
    const share = new Map<number, number>();
    for (const worker of holders) {
      const part = loads[expert]! > 0 ? placed.rowsAt(worker, expert) / loads[expert]! : 1 / holders.length;
      share.set(placeOf[worker]!, (share.get(placeOf[worker]!) ?? 0) + part);
    }
    return share;
  });
  if (choices === null || choices.length === 0) return placesByChance(shares, loads, topK, places);
  /** [places] Probability that no row goes there. */
  const without = new Float64Array(places).fill(1);
  const choose = (expert: number) => {
    for (const [place, share] of shares[expert]!) without[place]! *= Math.max(0, 1 - share);
  };
  const expected = () => without.reduce((sum, probability) => sum + 1 - probability, 0);
  let sum = 0;
  const tokens = Math.floor(choices.length / topK);
  for (let token = 0; token < tokens; token += 1) {
    without.fill(1);
    for (let slot = 0; slot < topK; slot += 1) choose(choices[token * topK + slot]!);
    sum += expected();
  }
  return sum / tokens;
}

/** Experts up to this probability, and so many of them, can be taken back from a count without rounding growing. */
const rareMax = 0.1;
const takenBackMax = 32;

/**
 * Every expert is chosen or not by itself, as often as its load says, and those outcomes count in which a token has its `topK` experts: without that
 * condition some tokens would have none. `shares`: by expert, of its rows in each place.
 */
function placesByChance(
  shares: readonly ReadonlyMap<number, number>[],
  loads: Float64Array,
  topK: number,
  places: number,
): number {
  const tokens = loads.reduce((sum, rows) => sum + rows, 0) / topK;
  const rare = new ChosenCounts(topK);
  const chosen: Chosen[] = [];
  const often: Chosen[] = [];
  /** [places] Experts that are rare and there. */
  const held: { probability: number; part: number }[][] = Array.from({ length: places }, () => []);
  for (const [expert, rows] of loads.entries()) {
    const probability = Math.min(1, rows / tokens);
    if (!(probability > 0)) continue;
    const share = shares[expert]!;
    chosen.push({ probability, share });
    if (probability > rareMax) {
      often.push({ probability, share });
      continue;
    }
    rare.add(probability, 1);
    for (const [place, part] of share) held[place]!.push({ probability, part });
  }
  const all = rare.copy();
  for (const { probability } of often) all.add(probability, 1);
  // Fewer experts than a token has may have rows.
  const experts = all.counts.findLastIndex((probability) => probability > 0);
  let sum = 0;
  for (const [place, here] of held.entries()) {
    if (here.length === 0 && !often.some(({ share }) => share.has(place))) continue;
    const isFew = here.length <= takenBackMax;
    const without = isFew ? rare.copy() : new ChosenCounts(topK);
    if (isFew) {
      for (const { probability } of here) without.takeBack(probability);
      for (const { probability, part } of here) without.add(probability, 1 - part);
    }
    for (const { probability, share } of isFew ? often : chosen)
      without.add(probability, 1 - (share.get(place) ?? 0));
    sum += 1 - Math.max(0, without.counts[experts]!) / all.counts[experts]!;
  }
  return sum;
}

interface Chosen {
  probability: number;
  share: ReadonlyMap<number, number>;
}

/** How likely it is that so many experts are chosen, and that all of them are elsewhere. */
class ChosenCounts {
  constructor(
    max: number,
    /** By number of experts, up to `max`. */
    readonly counts = Float64Array.from({ length: max + 1 }, (_, count) => (count === 0 ? 1 : 0)),
  ) {}

  copy(): ChosenCounts {
    return new ChosenCounts(this.counts.length - 1, this.counts.slice());
  }

  /** `elsewhere`: how likely the expert's row is not in the place. */
  add(probability: number, elsewhere: number): void {
    const { counts } = this;
    const there = probability * Math.max(0, elsewhere);
    for (let count = counts.length - 1; count > 0; count -= 1)
      counts[count] = counts[count]! * (1 - probability) + counts[count - 1]! * there;
    counts[0]! *= 1 - probability;
  }

  /** Of an expert that was added as one that is elsewhere. */
  takeBack(probability: number): void {
    const { counts } = this;
    counts[0]! /= 1 - probability;
    for (let count = 1; count < counts.length; count += 1)
      counts[count] = (counts[count]! - counts[count - 1]! * probability) / (1 - probability);
  }
}
