import { SwitchyardError } from '../common/errors.js';
import type { Placement, PlacementInput } from '../common/generated/switchyard/v1/Placement.js';

/** The map of one epoch as grouping reads it. A chunk's layer uses one of these from start to end. */
export interface PlacementIndex {
  epoch: number;
  /** Names: an index into it is what the kernels call a worker. The idle ones are in it too. */
  workers: string[];
  /** Layer to [experts]: index of the worker. */
  workerOf: ReadonlyMap<number, Uint32Array>;
  /** Layer to [workers]: the number of its experts there. */
  expertsAt: ReadonlyMap<number, Uint32Array>;
}

/** Throws INTERNAL for a placement whose experts are on workers that it does not name. */
export function indexPlacement(epoch: number, { workers, layers }: Placement): PlacementIndex {
  const workerOf = new Map(layers.map(({ layer, workerOf }) => [layer, Uint32Array.from(workerOf)]));
  const expertsAt = new Map<number, Uint32Array>();
  for (const [layer, holders] of workerOf) expertsAt.set(layer, countHolders(layer, holders, workers.length));
  return { epoch, workers, workerOf, expertsAt };
}

/** As messages have it. */
export function describePlacement({ workers, workerOf }: PlacementIndex): PlacementInput {
  return { workers, layers: [...workerOf].map(([layer, holders]) => ({ layer, workerOf: [...holders] })) };
}

function countHolders(layer: number, workerOf: Uint32Array, workers: number): Uint32Array {
  const counts = new Uint32Array(workers);
  for (const [expert, worker] of workerOf.entries()) {
    if (worker >= workers) {
      const text = `the coordinator placed layer ${layer} expert ${expert} on worker ${worker} of ${workers}`;
      throw new SwitchyardError('INTERNAL', text, { layer, expert });
    }
    counts[worker]! += 1;
  }
  return counts;
}
