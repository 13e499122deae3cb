import { SwitchyardError } from '../common/errors.js';
import { Draft, type ExpertIndex } from './draft.js';
import type { PlanInput } from './input.js';
import { makeRoom } from './make-room.js';

/**
 * The present copies, less those for which a worker has no memory, with what is missing to `copiesMin` copies of every expert.
 * Throws RESOURCE_EXHAUSTED with the numbers if they fit nowhere.
 */
export function requiredCopies(input: PlanInput): Draft {
  checkTotals(input);
  const draft = new Draft(input);
  for (const worker of input.workers.keys()) if (draft.free[worker]! < 0) shed(input, draft, worker);
  for (const layer of input.layers.keys())
    new Filling(input, draft, layer, (error) => {
      throw error;
    }).run();
  return draft;
}

/**
 * As `requiredCopies` for the experts for which `isWanted`, as far as memory goes: one copy of every expert comes before a second one of any. `nowhere` hears of
 * each copy that is left out, why it is.
 */
export function bestEffortCopies(
  input: PlanInput,
  isWanted: (index: ExpertIndex) => boolean,
  nowhere: (error: SwitchyardError) => void,
): Draft {
  const draft = new Draft(input);
  for (const worker of input.workers.keys()) if (draft.free[worker]! < 0) shed(input, draft, worker);
  const needed = Math.min(input.copiesMin, input.workers.length);
  for (const copiesMin of new Set([1, needed])) {
    const fillable = { ...input, copiesMin };
    for (const layer of input.layers.keys()) new Filling(fillable, draft, layer, nowhere, isWanted).run();
  }
  return draft;
}

function checkTotals({ workers, layers, copiesMin }: PlanInput): void {
  if (copiesMin > workers.length) {
    const text = `copiesMin is ${copiesMin}; allowed: at most ${workers.length}, the number of workers, for none holds two copies of an expert`;
    throw new SwitchyardError('RESOURCE_EXHAUSTED', text, { value: copiesMin, allowed: workers.length });
  }
  const once = layers.reduce((sum, { expertBytes, loads }) => sum + expertBytes * loads.length, 0);
  const value = once * copiesMin;
  const allowed = workers.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  if (value <= allowed) return;
  const copies = copiesMin === 1 ? '' : ` in ${copiesMin} copies`;
  const text = `the experts have ${value} bytes${copies}; allowed: at most ${allowed}, the memory of the ${workers.length} workers`;
  throw new SwitchyardError('RESOURCE_EXHAUSTED', text, { value, allowed });
}

/** Drops copies until the rest fits: those beyond `copiesMin` before others, and the least loaded first. */
function shed({ copiesMin }: PlanInput, draft: Draft, worker: number): void {
  const held = draft.expertsAt(worker);
  const isSpare = (expert: ExpertIndex) => draft.holders(expert).length > copiesMin;
  for (const expert of [...held.filter(isSpare), ...held.filter((one) => !isSpare(one))]) {
    if (draft.free[worker]! >= 0) return;
    draft.remove(expert, worker);
  }
}

/** Experts with fewer than `copiesMin` copies, the most loaded first. */
function lackingExperts({ layers, copiesMin }: PlanInput, { copies }: Draft, layer: number): number[] {
  const { loads } = layers[layer]!;
  const lacking = [...loads.keys()].filter((expert) => copies[layer]![expert]!.length < copiesMin);
  return lacking.sort((a, b) => loads[b]! - loads[a]! || a - b);
}

/** Adds the copies that a layer lacks: if possible on a host that has none of the expert, and there on the worker that is least loaded. */
class Filling {
  private readonly expertBytes: number;
  private readonly loads: Float64Array;
  /** [workers] Rows of the layer, where the copies of an expert have even shares. */
  private readonly load: Float64Array;
  /** [workers] Copies of the layer. */
  private readonly count: Uint32Array;
  /** [workers] Copies that a worker would take more if memory alone decided. */
  private readonly share: Float64Array;
  private full = false;

  constructor(
    private readonly input: PlanInput,
    private readonly draft: Draft,
    private readonly layer: number,
    private readonly nowhere: (error: SwitchyardError) => void,
    private readonly isWanted: (index: ExpertIndex) => boolean = () => true,
  ) {
    const { workers, layers } = input;
    ({ expertBytes: this.expertBytes, loads: this.loads } = layers[layer]!);
    this.load = new Float64Array(workers.length);
    this.count = new Uint32Array(workers.length);
    const holders = draft.copies[layer]!;
    for (const [expert, workers] of holders.entries())
      for (const worker of workers) this.took(expert, worker);
    const sum = (values: Iterable<number>) => [...values].reduce((total, value) => total + value, 0);
    const copies = sum(holders.map(({ length }) => Math.max(length, input.copiesMin)));
    const capacity = draft.free.map(
      (free, worker) => this.count[worker]! + Math.floor(free / this.expertBytes),
    );
    const share = copies / sum(capacity);
    this.share = capacity.map((one, worker) => Math.ceil(one * share) - this.count[worker]!);
  }

  run(): void {
    for (const expert of lackingExperts(this.input, this.draft, this.layer)) {
      const index = { layer: this.layer, expert };
      if (!this.isWanted(index)) continue;
      while (this.draft.holders(index).length < this.input.copiesMin) {
        let worker = this.choose(expert);
        if (worker < 0 && !this.full) worker = makeRoom(this.draft, index, this.input.copiesMin);
        if (worker < 0) {
          // What has no room makes none for others of its size.
          this.full = true;
          this.nowhere(this.noRoom(index));
          break;
        }
        this.draft.add(index, worker);
        this.share[worker]! -= 1;
        this.took(expert, worker);
      }
    }
  }

  private took(expert: number, worker: number): void {
    this.load[worker]! += this.rowsOfCopy(expert);
    this.count[worker]! += 1;
  }

  private rowsOfCopy(expert: number): number {
    const { length } = this.draft.copies[this.layer]![expert]!;
    return this.loads[expert]! / Math.max(length, this.input.copiesMin);
  }

  /** The best worker with room; -1 if there is none. */
  private choose(expert: number): number {
    const { workers } = this.input;
    const holders = this.draft.copies[this.layer]![expert]!;
    const hosts = new Set(holders.map((worker) => workers[worker]!.host));
    const rows = this.rowsOfCopy(expert);
    let best = -1;
    let least: Rank = { beside: 0, beyond: 0, level: 0, count: 0 };
    for (let worker = 0; worker < workers.length; worker += 1) {
      const { host, rowsPerSecond, closed } = workers[worker]!;
      if (closed || this.draft.free[worker]! < this.expertBytes || holders.includes(worker)) continue;
      const rank = {
        beside: hosts.has(host) ? 1 : 0,
        beyond: this.share[worker]! <= 0 ? 1 : 0,
        level: (this.load[worker]! + rows) / rowsPerSecond,
        count: (this.count[worker]! + 1) / rowsPerSecond,
      };
      if (best >= 0 && compare(rank, least) >= 0) continue;
      best = worker;
      least = rank;
    }
    return best;
  }

  private noRoom(index: ExpertIndex): SwitchyardError {
    const { layer } = this.input.layers[this.layer]!;
    const { expert } = index;
    const { free } = this.draft;
    const others = this.draft.open.filter((worker) => !this.draft.holders(index).includes(worker));
    const allowed = Math.max(0, ...others.map((worker) => free[worker]!));
    const value = this.expertBytes;
    const text = `layer ${layer} expert ${expert} has ${value} bytes and fits on none of the ${others.length} workers without it: the most that is left on one of them is ${allowed} bytes`;
    return new SwitchyardError('RESOURCE_EXHAUSTED', text, { layer, expert, value, allowed });
  }
}

/** What makes a worker worse for a copy, the most important first. */
interface Rank {
  /** Another copy is on its host. */
  beside: number;
  /** It has had its share. */
  beyond: number;
  level: number;
  /** Copies of the layer, by its rate. */
  count: number;
}

function compare(a: Rank, b: Rank): number {
  return a.beside - b.beside || a.beyond - b.beyond || a.level - b.level || a.count - b.count;
}
