import { invalidArgument, type SwitchyardError } from '../common/errors.js';
import { listCopies } from '../common/expert-copies.js';
import type { LayerPlacement } from '../common/generated/switchyard/v1/LayerPlacement.js';
import type { Placement } from '../common/generated/switchyard/v1/Placement.js';
import type { ExpertOrder } from '../model/expert-order.js';
import type { Candidate } from './planning.js';
import type { Mark } from './plans.js';

/** By number of the expert: the slots of the workers that are to have it, ascending. */
type Target = readonly (readonly number[])[];

interface Circumstances {
  experts: ExpertOrder;
  /** Workers that may have copies. */
  candidates: readonly Candidate[];
  /** Where copies are to be as yet. */
  present: Target;
  /** By name of the worker. */
  marks: ReadonlyMap<string, Mark>;
  /** Names of workers that no router reaches. */
  unreached: ReadonlySet<string>;
  /** Copies of each expert at least, as far as there are workers and memory. */
  copies: number;
  /** Why there cannot be as many; null: there can. */
  lacking: SwitchyardError | null;
}

/** Where an operator wants copies to be; experts of which he says nothing stay. Throws INVALID_ARGUMENT for what cannot be. */
export function targetOf(wanted: Placement, circumstances: Circumstances): number[][] {
  const { experts, candidates, present } = circumstances;
  const slots = wanted.workers.map((name) => candidates.find((one) => one.name === name)?.slot);
  const target = present.map((holders) => [...holders]);
  for (const layer of wanted.layers) {
    const { first, lists } = listsOf(layer, experts);
    for (const [expert, workers] of lists.entries()) {
      const at = `layer ${layer.layer} expert ${expert}`;
      const holders = workers.map((worker) => slots[worker]);
      if (holders.length === 0 || holders.includes(undefined) || new Set(holders).size !== holders.length) {
        const names = workers.map((worker) => wanted.workers[worker] ?? worker).join(', ');
        throw invalidArgument(`workers of ${at}`, names, allowedWorkers(wanted, circumstances));
      }
      checkCopies(`copies of ${at}`, holders.length, present[first + expert]!.length, circumstances);
      target[first + expert] = (holders as number[]).sort((a, b) => a - b);
    }
  }
  return target;
}

/** Throws INVALID_ARGUMENT if a worker would have more copies than its memory holds. */
export function checkMemory(candidates: readonly Candidate[], target: Target, expertBytes: number): void {
  for (const { slot, name, memoryBytes } of candidates) {
    const capacity = Math.floor(memoryBytes / expertBytes);
    const count = target.filter((holders) => holders.includes(slot)).length;
    if (count > capacity)
      throw invalidArgument(`copies on worker ${name}`, count, `at most ${capacity}, its memory`);
  }
}

/** The workers of each expert of a layer, and the number of the first one. */
function listsOf(layer: LayerPlacement, experts: ExpertOrder) {
  const { first, experts: count } = experts.rangeOf(layer.layer) ?? { first: 0, experts: 0 };
  if (count === 0) {
    const allowed = experts.layers.map((one) => one.layer).join(', ');
    throw invalidArgument('layer', layer.layer, `those of the model: ${allowed}`);
  }
  const lists = listCopies(layer);
  if (lists.length !== count) {
    const value = `${lists.length} of layer ${layer.layer}`;
    throw invalidArgument('copies', value, `one for each of its ${count} experts`);
  }
  return { first, lists };
}

function allowedWorkers({ workers }: Placement, { candidates, marks, unreached }: Circumstances): string {
  const drained = workers.filter((name) => marks.get(name) === 'DRAINED');
  const missed = workers.filter((name) => unreached.has(name));
  const why = drained.length === 0 ? '' : `; drained: ${drained.join(', ')}`;
  const also = missed.length === 0 ? '' : `; no router reaches ${missed.join(', ')}`;
  return `different ones of ${candidates.map(({ name }) => name).join(', ')}${why}${also}`;
}

/** Where memory is too small for all copies that there are to be, those that there are must stay. */
function checkCopies(
  field: string,
  count: number,
  present: number,
  { candidates, copies, lacking }: Circumstances,
): void {
  const least = Math.min(copies, candidates.length);
  const floor = lacking === null ? least : Math.min(least, present);
  if (count >= floor) return;
  const allowed = `at least ${floor}: the coordinator's copies are ${copies}, so plan with --copies ${copies}`;
  throw invalidArgument(field, count, allowed);
}
