import { LayerCopies } from './layer-copies.js';

/** The rows of a layer's experts, split over their copies so that the highest level of a worker is as low as it can be. */
export interface Split {
  /** [experts] → rows for each of its copies, in their order. */
  rows: Float64Array[];
  /** [workers] */
  workerRows: Float64Array;
}

/**
 * The best split of the rows of replicated experts: no worker's time for its rows can be made shorter without one that takes
 * as long or longer taking longer still. `loads`: [experts] rows. `rates`: [workers] rows a second. `workersOf`: [experts] → the workers
 * that hold a copy, at least one. The rows are shares, not yet whole numbers.
 */
export function splitRows(
  loads: Float64Array,
  rates: Float64Array,
  workersOf: readonly (readonly number[])[],
): Split {
  const layer = new LayerCopies(loads, rates, workersOf);
  const rows = workersOf.map((holders, expert) =>
    Float64Array.from(holders, (worker) => layer.rowsAt(worker, expert)),
  );
  return { rows, workerRows: layer.load };
}
