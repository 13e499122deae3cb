import type { RoutingSpec } from '../native/index.js';

/** As Mixtral routes: softmax over all experts, top-k, weights that sum to 1. */
export function softmaxRouting(topK: number): RoutingSpec {
  return {
    topK,
    score: 'softmax',
    renormalise: true,
    scale: 1,
    groups: 1,
    groupsChosen: 1,
    groupScore: 'max',
    masked: 'zero',
    weightOn: 'output',
  };
}
