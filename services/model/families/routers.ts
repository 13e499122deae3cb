import type { RoutingSpec } from '../../../native/index.js';

const ungrouped = {
  scale: 1,
  groups: 1,
  groupsChosen: 1,
  groupScore: 'max',
  masked: 'negative-infinity',
  weightOn: 'output',
} as const;

/** Softmax over all experts, of which the best are taken. Renormalised it is the same as a softmax over the chosen ones. */
export function softmax(topK: number, renormalise: boolean, more: Partial<RoutingSpec> = {}): RoutingSpec {
  return { ...ungrouped, score: 'softmax', topK, renormalise, ...more };
}

/** The keys of config.json by which DeepSeek-V3 and all that follow it route. */
export interface GroupedKeys {
  num_experts_per_tok: number;
  n_group: number;
  topk_group: number;
  norm_topk_prob: boolean;
  routed_scaling_factor: number;
}

/** As DeepSeek-V3: sigmoid; groups by the sum of their two best; a bias to choose by, which the weights are without. */
export function sigmoidGroups(config: GroupedKeys, more: Partial<RoutingSpec> = {}): RoutingSpec {
  return {
    ...ungrouped,
    score: 'sigmoid',
    topK: config.num_experts_per_tok,
    renormalise: config.norm_topk_prob,
    scale: config.routed_scaling_factor,
    groups: config.n_group,
    groupsChosen: config.topk_group,
    groupScore: 'top2',
    ...more,
  };
}

/** Sigmoid, the best of all. */
export function sigmoid(topK: number, renormalise: boolean, more: Partial<RoutingSpec> = {}): RoutingSpec {
  return { ...ungrouped, score: 'sigmoid', topK, renormalise, ...more };
}
