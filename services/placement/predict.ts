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
 * In how many places (workers or hosts) a token's rows are computed on average: over the sampled tokens, or, without them, for experts chosen
 * independently, each as often as its load says. A replicated expert's rows go to its copies by their shares.
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
  /** [places] Probability that no row goes there. */
  const without = new Float64Array(places).fill(1);
  const choose = (expert: number, probability: number) => {
    for (const [place, share] of shares[expert]!) without[place]! *= Math.max(0, 1 - probability * share);
  };
  const expected = () => without.reduce((sum, probability) => sum + 1 - probability, 0);
  if (choices === null || choices.length === 0) {
    const tokens = loads.reduce((sum, rows) => sum + rows, 0) / topK;
    if (tokens > 0) for (const [expert, rows] of loads.entries()) choose(expert, Math.min(1, rows / tokens));
    return expected();
  }
  let sum = 0;
  const tokens = Math.floor(choices.length / topK);
  for (let token = 0; token < tokens; token += 1) {
    without.fill(1);
    for (let slot = 0; slot < topK; slot += 1) choose(choices[token * topK + slot]!, 1);
    sum += expected();
  }
  return sum / tokens;
}
