import type { LayerBiasInput } from '../common/generated/switchyard/v1/LayerBias.js';
import { packFloat32 } from '../common/packed.js';
import { type LayerSpec, routedExperts } from '../model/spec.js';

export interface FeedbackOptions {
  /** How far a bias moves in one step for an expert whose load is off by its whole fair share. */
  rate: number;
  /** Biases stay within [-limit, limit]. */
  limit: number;
  /** Rows per expert, on average, that a step needs: fewer would be noise. */
  windowRowsPerExpert: number;
}

/** Experts that tokens choose among. */
interface Pool {
  /** Rows per expert since the last step. */
  window: Float64Array;
  bias: Float64Array;
}

interface LayerFeedback {
  /** With the shared ones, of which no bias moves rows. */
  experts: number;
  /** Side by side: the experts that all tokens may choose, and the isolated ones if there are some. */
  pools: Pool[];
  bias: Float64Array;
  /** The feedback's version since which the bias is as it is; 0: it is all 0. */
  version: number;
}

/**
 * The load feedback loop. Routers report rows per expert; when a layer's window is full, its bias takes one step (isolated experts,
 * which get no row of the others, and those others have a window and a step each):
 *
 *   b_e += rate * clip((mean - load_e) / mean, -1, 1)
 *
 * (the rule of DeepSeek-V3, b_e += rate * sign(mean - load_e), with steps that shrink as the load evens out, so that
 * it does not oscillate around the balance). Biases are centred, for only their differences choose, and bounded.
 */
export class Feedback {
  private readonly byLayer: ReadonlyMap<number, LayerFeedback>;
  private steps = 0;

  constructor(
    layers: readonly Pick<LayerSpec, 'layer' | 'experts' | 'isolated' | 'shared'>[],
    private readonly options: FeedbackOptions,
  ) {
    this.byLayer = new Map(
      layers.map((layer) => {
        const bias = new Float64Array(routedExperts(layer));
        const pools = poolsOf(bias, layer.isolated?.experts ?? 0);
        return [layer.layer, { experts: layer.experts, pools, bias, version: 0 }];
      }),
    );
  }

  /** Number of steps taken; 0: every bias is 0. */
  get version(): number {
    return this.steps;
  }

  /** Adds rows chosen per expert. Returns whether the layer's bias changed. */
  observe(layer: number, rows: Uint32Array): boolean {
    const state = this.byLayer.get(layer);
    if (state === undefined || rows.length !== state.experts) return false;
    let first = 0;
    let changed = false;
    for (const pool of state.pools) {
      const { window } = pool;
      let total = 0;
      for (let expert = 0; expert < window.length; expert += 1) {
        window[expert]! += rows[first + expert]!;
        total += window[expert]!;
      }
      first += window.length;
      if (total === 0 || total < this.options.windowRowsPerExpert * window.length) continue;
      this.step(pool, total / window.length);
      changed = true;
    }
    if (!changed) return false;
    this.steps += 1;
    state.version = this.steps;
    return true;
  }

  /** What routers add to selection scores, of the layers where it changed after `version`. */
  changedSince(version: number): LayerBiasInput[] {
    return [...this.byLayer]
      .filter(([, layer]) => layer.version > version)
      .map(([layer, { bias }]) => ({ layer, bias: packFloat32(Float32Array.from(bias)) }));
  }

  /** The bias of every layer. */
  *biases(): Generator<[layer: number, bias: Float64Array]> {
    for (const [layer, { bias }] of this.byLayer) yield [layer, bias];
  }

  private step({ bias, window }: Pool, mean: number): void {
    const { rate, limit } = this.options;
    let sum = 0;
    for (let expert = 0; expert < bias.length; expert += 1) {
      const shortfall = (mean - window[expert]!) / mean;
      bias[expert]! += rate * Math.max(-1, Math.min(1, shortfall));
      sum += bias[expert]!;
    }
    const centre = sum / bias.length;
    for (let expert = 0; expert < bias.length; expert += 1)
      bias[expert] = Math.max(-limit, Math.min(limit, bias[expert]! - centre));
    window.fill(0);
  }
}

/** `isolated`: how many of the experts are, the last ones. */
function poolsOf(bias: Float64Array, isolated: number): Pool[] {
  const common = bias.length - isolated;
  const parts = isolated === 0 ? [bias] : [bias.subarray(0, common), bias.subarray(common)];
  return parts.map((part) => ({ window: new Float64Array(part.length), bias: part }));
}

/**
 * Mean/max of rows over the workers that have experts: 1 is even. 1 if there are no rows. `workersOf`: [experts] → slots of who serves it; those of a
 * replicated expert are taken to get the same share.
 */
export function balancedness(rowsPerExpert: Float64Array, workersOf: readonly (readonly number[])[]): number {
  const bySlot: number[] = [];
  for (let expert = 0; expert < workersOf.length; expert += 1) {
    const slots = workersOf[expert]!;
    const share = rowsPerExpert[expert]! / slots.length;
    for (const slot of slots) bySlot[slot] = (bySlot[slot] ?? 0) + share;
  }
  let [workers, total, most] = [0, 0, 0];
  for (const rows of bySlot) {
    if (rows === undefined) continue;
    workers += 1;
    total += rows;
    most = Math.max(most, rows);
  }
  return total === 0 ? 1 : total / workers / most;
}
