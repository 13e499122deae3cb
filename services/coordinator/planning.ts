import type { SwitchyardError } from '../common/errors.js';
import type { DeviceRoom } from '../model/device-bytes.js';
import type { ExpertOrder } from '../model/expert-order.js';
import type { Copies, PlanInput, PlanWorker } from '../placement/input.js';
import type { LoadLimits } from '../placement/loading.js';
import { exactly, likeFactor, usualRates } from '../placement/rates.js';
import type { CopyLists } from '../placement/reconcile.js';
import { bestEffortCopies } from '../placement/required.js';
import { plannedRates, type Speed } from '../placement/speeds.js';

/** For how long the load is taken to stay as it is. */
const horizonSeconds = 3_600;
/** What is assumed where nothing was measured: only their proportions matter. */
const rowsPerSecondAssumed = 100_000;
const loadBytesPerSecondAssumed = 1e9;
/** Of what the workers can compute, an unknown load is taken to be so much. */
const shareAssumed = 0.5;

/** What the coordinator knows of a worker that may have copies; its room is that of roomForExperts. */
export interface Candidate extends DeviceRoom {
  slot: number;
  name: string;
  host: string;
  /** It gets none that it does not have. */
  cordoned: boolean;
  meter: { readonly speed: Speed };
}

export interface PlanningOptions {
  experts: ExpertOrder;
  /** Of one expert. */
  expertBytes: number;
  topK: number;
  /** Of each expert at least. */
  copies: number;
  /** Of a layer beyond those; null: as many as memory holds. */
  replicaSlots: number | null;
  limits: LoadLimits;
}

/** Makes the planner's input of what the coordinator knows, and targets by slot of what it answers. */
export class Planning {
  constructor(private readonly options: PlanningOptions) {}

  /** `rates`: rows a second by number of the expert; null: nothing is known, and all are taken to be the same. */
  input(candidates: readonly Candidate[], present: CopyLists, rates: Float64Array | null): PlanInput {
    const { experts, expertBytes, topK, copies, replicaSlots, limits } = this.options;
    const counts = countOf(candidates, present);
    const speeds = candidates.map(({ meter }) => meter.speed);
    const rowsPerSecond = plannedRates(speeds, rowsPerSecondAssumed);
    const loadBytesPerSecond = usualRates(
      candidates.map((candidate) => exactly(candidate.loadBytesPerSecond)),
      loadBytesPerSecondAssumed,
      likeFactor.loadBytesPerSecond,
    );
    const workers = candidates.map((candidate, index): PlanWorker => {
      const { name, host, memoryBytes, cordoned } = candidate;
      return {
        name,
        host,
        memoryBytes: cordoned ? Math.min(counts[index]! * expertBytes, memoryBytes) : memoryBytes,
        rowsPerSecond: rowsPerSecond[index]!,
        loadBytesPerSecond: loadBytesPerSecond[index]!,
      };
    });
    const capacity = rowsPerSecond.reduce((sum, rate) => sum + rate, 0);
    const loads = rates ?? new Float64Array(experts.total).fill((capacity * shareAssumed) / experts.total);
    const indexOf = new Map(candidates.map(({ slot }, index) => [slot, index]));
    return {
      workers,
      layers: experts.layers.map(({ layer }) => ({
        layer,
        expertBytes,
        loads: experts.sliceOf(layer, loads),
        choices: null,
      })),
      topK,
      present: experts.layers.map(({ layer, experts: count }) => {
        const first = experts.indexOf({ layer, expert: 0 });
        return present
          .slice(first, first + count)
          .map((slots) => slots.flatMap((slot) => indexOf.get(slot) ?? []).sort((a, b) => a - b));
      }),
      copiesMin: Math.min(copies, Math.max(1, candidates.length)),
      replicaSlots,
      limits,
      horizonSeconds,
      crossingSeconds: 0,
    };
  }

  /** By number of the expert, as slots. */
  target(candidates: readonly Candidate[], copies: Copies): number[][] {
    const slots = (holders: readonly number[]) => holders.map((worker) => candidates[worker]!.slot);
    return copies.flatMap((layer) => layer.map((holders) => slots(holders).sort((a, b) => a - b)));
  }

  /**
   * The copies that there must be of the experts for which `isWanted`, by their numbers, with as little change as can be: what is missing comes where it fits best.
   * What fits nowhere is left out; the error says so with numbers.
   */
  required(
    candidates: readonly Candidate[],
    present: CopyLists,
    rates: Float64Array | null,
    isWanted: (expert: number) => boolean = () => true,
  ) {
    if (candidates.length === 0) return { target: present.map((): number[] => []), lacking: null };
    const { experts } = this.options;
    const lacking: SwitchyardError[] = [];
    const input = this.input(candidates, present, rates);
    const numberOf = ({ layer, expert }: { layer: number; expert: number }) =>
      experts.indexOf({ layer: input.layers[layer]!.layer, expert });
    const draft = bestEffortCopies(
      input,
      (index) => isWanted(numberOf(index)),
      (error) => lacking.push(error),
    );
    return { target: this.target(candidates, draft.copies), lacking: lacking[0] ?? null };
  }

  /**
   * The first copies of experts that nobody holds: dealt to the workers in turn, so that within a layer none has more than one above any other, and the same holds
   * for the model as a whole. `candidates`: in the order in which they are dealt to. Experts that every token
   * goes to are dealt to all, if there is memory. Where memory is too small for equal shares it decides.
   */
  dealt(candidates: readonly Candidate[]): number[][] {
    const { experts, expertBytes } = this.options;
    const shared = experts.shared();
    const fits = (copies: number) =>
      candidates.length > 0 &&
      candidates.every(({ memoryBytes, cordoned }) => !cordoned && memoryBytes >= copies * expertBytes);
    const share = (count: number) => Math.ceil(count / candidates.length);
    // Every worker has what every token goes to, so that rows of it go where the least is to do.
    const everywhere = shared.size > 0 && fits(share(experts.total - shared.size) + shared.size);
    const once = everywhere || fits(share(experts.total));
    let dealt = 0;
    return Array.from({ length: experts.total }, (_, expert) => {
      if (everywhere && shared.has(expert)) return candidates.map(({ slot }) => slot).sort((a, b) => a - b);
      return once ? [candidates[dealt++ % candidates.length]!.slot] : [];
    });
  }
}

/** By candidate: how many copies it has. */
function countOf(candidates: readonly Candidate[], present: CopyLists): number[] {
  const counts = new Map<number, number>();
  for (const slot of present.flat()) counts.set(slot, (counts.get(slot) ?? 0) + 1);
  return candidates.map(({ slot }) => counts.get(slot) ?? 0);
}
