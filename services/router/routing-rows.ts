import type { BatchPlan } from './plan.js';

/** Experts and weights of consecutive tokens: [tokens, layers, topK]. */
export interface RoutingRows {
  experts: Uint32Array;
  weights: Float32Array;
}

/** What was chosen for a chunk at one layer: [tokens, topK], and rows per expert. */
export interface LayerRouting extends RoutingRows {
  counts: Uint32Array;
}

export function allocateRouting(plan: BatchPlan, tokens: number): RoutingRows {
  const length = tokens * plan.layers.length * plan.topK;
  return { experts: new Uint32Array(length), weights: new Float32Array(length) };
}

/** The part of `tokens` tokens from `first` on, as a view. */
export function sliceRouting(
  { experts, weights }: RoutingRows,
  plan: BatchPlan,
  first: number,
  tokens: number,
): RoutingRows {
  const perToken = plan.layers.length * plan.topK;
  const from = first * perToken;
  const to = from + tokens * perToken;
  return { experts: experts.subarray(from, to), weights: weights.subarray(from, to) };
}

/** One layer out of all: what the batch gave for it. */
export function gatherRouting(all: RoutingRows, plan: BatchPlan, layerIndex: number): LayerRouting {
  const { topK } = plan;
  const stride = plan.layers.length * topK;
  const tokens = all.experts.length / stride;
  const experts = new Uint32Array(tokens * topK);
  const weights = new Float32Array(tokens * topK);
  const counts = new Uint32Array(plan.layers[layerIndex]!.experts);
  for (let token = 0, to = 0; token < tokens; token += 1) {
    let from = token * stride + layerIndex * topK;
    for (let choice = 0; choice < topK; choice += 1, from += 1, to += 1) {
      const expert = all.experts[from]!;
      experts[to] = expert;
      weights[to] = all.weights[from]!;
      counts[expert]! += 1;
    }
  }
  return { experts, weights, counts };
}

/** The other way: one layer's choice into the place for all layers. */
export function scatterRouting(
  layer: RoutingRows,
  all: RoutingRows,
  plan: BatchPlan,
  layerIndex: number,
): void {
  const { topK } = plan;
  const stride = plan.layers.length * topK;
  for (let from = 0, row = layerIndex * topK; from < layer.experts.length; row += stride) {
    for (let choice = 0; choice < topK; choice += 1, from += 1) {
      all.experts[row + choice] = layer.experts[from]!;
      all.weights[row + choice] = layer.weights[from]!;
    }
  }
}
