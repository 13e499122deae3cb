import type { LayerExperts } from './generated/switchyard/v1/LayerExperts.js';

/** One expert of a model. */
export interface ExpertId {
  layer: number;
  expert: number;
}

/** Experts as messages name them: layer by layer. */
export function groupByLayer(experts: Iterable<ExpertId>): LayerExperts[] {
  const byLayer = new Map<number, number[]>();
  for (const { layer, expert } of experts) {
    const known = byLayer.get(layer);
    if (known) known.push(expert);
    else byLayer.set(layer, [expert]);
  }
  return [...byLayer].map(([layer, numbers]) => ({ layer, experts: numbers }));
}

/** The experts that a message names. */
export function* expertsIn(layers: readonly LayerExperts[]): Generator<ExpertId> {
  for (const { layer, experts } of layers) for (const expert of experts) yield { layer, expert };
}
