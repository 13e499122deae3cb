import type { LayerPlacement } from './generated/switchyard/v1/LayerPlacement.js';

/** By expert: the workers of its copies, as messages carry them. */
export function copiesMessage(layer: number, workersOf: readonly (readonly number[])[]): LayerPlacement {
  return { layer, copies: workersOf.map((workers) => workers.length), workers: workersOf.flat() };
}

/** By expert: the workers of its copies. */
export function listCopies({ copies, workers }: LayerPlacement): number[][] {
  let first = 0;
  return copies.map((count) => {
    const end = first + count;
    const list = workers.slice(first, end);
    first = end;
    return list;
  });
}
