import type { ExpertCopies } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { LayerPlacement } from '../common/generated/switchyard/v1/LayerPlacement.js';
import type { Placement, PlacementInput } from '../common/generated/switchyard/v1/Placement.js';

/** The map of one epoch as grouping reads it. A chunk's layer uses one of these from start to end. */
export interface PlacementIndex {
  term: number;
  epoch: number;
  /** Names: an index into it is what the kernels call a worker. The idle ones are in it too. */
  workers: string[];
  /** By layer. */
  copies: ReadonlyMap<number, ExpertCopies>;
  /** Layer to [workers]: the number of its experts there. */
  expertsAt: ReadonlyMap<number, Uint32Array>;
}

/**
 * `known`: the placement before, of which layers stay that a message of the same term does not have. Throws INTERNAL for a placement whose
 * experts are on workers that it does not name.
 */
export function indexPlacement(
  { term, epoch }: { term: number; epoch: number },
  { workers, layers }: Placement,
  known: PlacementIndex | null,
): PlacementIndex {
  const before = known?.term === term ? known : null;
  const copies = new Map(before?.copies);
  const expertsAt = new Map<number, Uint32Array>();
  for (const layer of layers) copies.set(layer.layer, indexLayer(layer, workers.length));
  for (const [layer, { workers: holders }] of copies) {
    const counts = new Uint32Array(workers.length);
    for (const worker of holders) counts[worker]! += 1;
    expertsAt.set(layer, counts);
  }
  return { term, epoch, workers, copies, expertsAt };
}

/** As messages have it. */
export function describePlacement({ workers, copies }: PlacementIndex): PlacementInput {
  const layers = [...copies].map(([layer, { offsets, workers: holders }]) => ({
    layer,
    copies: Array.from(offsets.subarray(1), (end, expert) => end - offsets[expert]!),
    workers: [...holders],
  }));
  return { workers, layers };
}

function indexLayer({ layer, copies, workers: holders }: LayerPlacement, workers: number): ExpertCopies {
  const offsets = new Uint32Array(copies.length + 1);
  for (const [expert, count] of copies.entries()) offsets[expert + 1] = offsets[expert]! + count;
  if (offsets.at(-1) !== holders.length) {
    const text = `the coordinator placed ${offsets.at(-1)} copies of layer ${layer} on ${holders.length} workers`;
    throw new SwitchyardError('INTERNAL', text, { layer });
  }
  for (let expert = 0; expert < copies.length; expert += 1) {
    for (let copy = offsets[expert]!; copy < offsets[expert + 1]!; copy += 1) {
      const worker = holders[copy]!;
      if (worker < workers && (copy === offsets[expert] || worker > holders[copy - 1]!)) continue;
      const text = `the coordinator placed layer ${layer} expert ${expert} on worker ${worker}; allowed: below ${workers}, ascending`;
      throw new SwitchyardError('INTERNAL', text, { layer, expert });
    }
  }
  return { offsets, workers: Uint32Array.from(holders) };
}
