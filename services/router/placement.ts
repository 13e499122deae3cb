import type { ClusterView } from '../common/generated/switchyard/v1/ClusterView.js';

/** In `workerOf`: the expert is on no worker. */
export const nowhere = 0xffff_ffff;

/** The map of one epoch as grouping reads it. A chunk's layer uses one of these from start to end. */
export interface PlacementIndex {
  epoch: number;
  /** Names, sorted: an index into it is what the kernels call a worker. The idle ones are in it too. */
  workers: string[];
  /** Layer to [experts]: index of the worker, or `nowhere`. */
  workerOf: ReadonlyMap<number, Uint32Array>;
  /** Layer to [workers]: the number of its experts there. */
  expertsAt: ReadonlyMap<number, Uint32Array>;
}

/** Reads the placements of a view. Of several copies of an expert the first is used. */
export function indexPlacements(view: ClusterView): PlacementIndex {
  const workers = [...new Set(view.placements.flatMap((placement) => placement.workers))].sort();
  const indexOf = new Map(workers.map((name, index) => [name, index]));
  const experts = new Map<number, number>();
  for (const { layer, expert } of view.placements) {
    experts.set(layer, Math.max(experts.get(layer) ?? 0, expert + 1));
  }
  const workerOf = new Map(
    [...experts].map(([layer, count]) => [layer, new Uint32Array(count).fill(nowhere)]),
  );
  for (const { layer, expert, workers: holders } of view.placements) {
    const worker = holders[0];
    if (worker !== undefined) workerOf.get(layer)![expert] = indexOf.get(worker)!;
  }
  const expertsAt = new Map(
    [...workerOf].map(([layer, holders]) => [layer, countsOf(holders, workers.length)]),
  );
  return { epoch: view.epoch, workers, workerOf, expertsAt };
}

function countsOf(workerOf: Uint32Array, workers: number): Uint32Array {
  const counts = new Uint32Array(workers);
  for (const worker of workerOf) if (worker !== nowhere) counts[worker]! += 1;
  return counts;
}
