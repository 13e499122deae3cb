import type { SeededRandom } from './random.js';

/** What can go wrong, each with its weight for a seed; 0: it does not happen. */
export interface FaultWeights {
  crash: number;
  drain: number;
  stop: number;
  cut: number;
  isolate: number;
  break: number;
  starve: number;
  /** What operators ask for. */
  mark: number;
  rebalance: number;
  /** Of a host's wall clock. */
  jump: number;
}

export interface FaultPlan {
  weights: FaultWeights;
  /** Between two faults, on average. */
  everyMs: number;
  /** How long one lasts, at most. */
  lastsMs: number;
}

/** What does faults, each by its name. It returns what ends the fault. */
export type FaultTarget = Record<keyof FaultWeights, () => () => void>;

export function drawFaults(random: SeededRandom): FaultPlan {
  const weight = () => (random.chance(0.5) ? random.between(0.1, 1) : 0);
  const weights = {
    crash: weight(),
    drain: weight(),
    stop: weight(),
    cut: weight(),
    isolate: weight(),
    break: weight(),
    starve: weight(),
    mark: weight(),
    rebalance: weight(),
    jump: weight(),
  };
  return { weights, everyMs: random.magnitude(300, 8_000), lastsMs: random.magnitude(200, 12_000) };
}

/** One fault by its weight; null: this seed has none. */
export function pickFault(random: SeededRandom, weights: FaultWeights): keyof FaultWeights | null {
  const entries = Object.entries(weights) as [keyof FaultWeights, number][];
  let left = random.unit() * entries.reduce((sum, [, weight]) => sum + weight, 0);
  for (const [kind, weight] of entries) {
    left -= weight;
    if (weight > 0 && left <= 0) return kind;
  }
  return null;
}
