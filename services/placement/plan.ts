import type { Draft } from './draft.js';
import { type Change, Improvement } from './improve.js';
import { type Copies, checkInput, type PlanInput } from './input.js';
import { LayerCopies } from './layer-copies.js';
import { Loading, loadingOf } from './loading.js';
import { type LayerPrediction, predict, workersPerToken } from './predict.js';
import { requiredCopies } from './required.js';
import { Affinity } from './traffic.js';

/** A layer is changed only if its seconds sink by this share of them, so that noise in the load moves nothing. */
export const gainShareMin = 0.02;
/** For less traffic the busiest worker may be above the even level by this share of it. */
const levelShareMax = 0.02;
/** And only if the seconds that this saves over the horizon, once its copies are there, are so many times those that loading costs. */
export const gainOverCostMin = 2;

export interface Plan {
  /** Where every copy shall be. */
  target: Copies;
  predicted: { present: LayerPrediction[]; target: LayerPrediction[] };
  /** Copies of the target that are not there, and copies that are there and not in the target. */
  copiesToLoad: number;
  copiesToDrop: number;
  /** Of those to load: what every expert must have, whatever that gains. */
  copiesRequired: number;
  bytesToLoad: number;
  /** Until all of them are there, as limits and workers let them be loaded. */
  secondsToLoad: number;
  /**
   * What the layers take less over the horizon than they would if only missing copies were loaded: time of the busiest workers, and of the links between hosts.
   * Layers are loaded one after the other, and what one takes less counts from when its copies are there.
   */
  gainSeconds: number;
  /** What is loaded for this gain, in seconds of the whole cluster's work, if a worker that loads computes nothing meanwhile. */
  costSeconds: number;
  /** `gainSeconds` less `costSeconds`. */
  netGainSeconds: number;
}

/**
 * Plans where the copies of all experts shall be: what must be added to the present placement, and those changes to it whose gain
 * pays their cost. Pure, and the same for the same input; planning from a target changes nothing. Throws INVALID_ARGUMENT for an input that is wrong,
 * RESOURCE_EXHAUSTED with the numbers for experts that fit nowhere.
 */
export function plan(input: PlanInput): Plan {
  checkInput(input);
  const least = outcome(input, requiredCopies(input));
  // Each change pays by itself, but all of them may take longer to load than there is time. Then those count that pay from the copies that there must be, as they will be there.
  for (const from of [input.present, least.copies]) {
    const draft = requiredCopies(input);
    improve(input, draft, from);
    const best = outcome(input, draft);
    const { gainSeconds, costSeconds } = gainOf({ ...input, present: from }, least, best);
    if (draft.isAt(least.copies) || gainSeconds > gainOverCostMin * costSeconds)
      return summarize(input, least, best);
  }
  return summarize(input, least, least);
}

/** Changes a draft as far as that pays, from copies that are there. */
function improve(input: PlanInput, draft: Draft, present: Copies): void {
  // What a plan from the target would change is part of this one: it pays what it costs from there, which is no less than from here.
  for (let from = present, rests = false; !rests; from = draft.snapshot()) {
    const planner = new Planner({ ...input, present: from }, draft);
    // Ends, for every round but the last lowers the sum of the layers' seconds.
    while (planner.round());
    rests = draft.isAt(from);
  }
}

const outcome = (input: PlanInput, draft: Draft): Outcome => ({
  copies: draft.snapshot(),
  seconds: new Planner(input, draft).layerSeconds(),
});

/** Where copies are, and what each layer takes then, as `Planner.seconds`. */
interface Outcome {
  copies: Copies;
  seconds: number[];
}

class Planner {
  private readonly rates: Float64Array;
  private readonly hostOf: Uint32Array;
  private readonly hosts: number;
  private readonly closed: ReadonlySet<number>;
  /** [workers] What one byte costs. */
  private readonly byteSeconds: Float64Array;

  /** [layers] The draft's copies with their rows split afresh. */
  private readonly split: LayerCopies[];

  constructor(
    private readonly input: PlanInput,
    private readonly draft: Draft,
  ) {
    const { workers } = input;
    const names = [...new Set(workers.map(({ host }) => host))];
    this.hosts = names.length;
    this.closed = new Set([...workers.keys()].filter((worker) => workers[worker]!.closed));
    this.hostOf = Uint32Array.from(workers, ({ host }) => names.indexOf(host));
    this.rates = Float64Array.from(workers, ({ rowsPerSecond }) => rowsPerSecond);
    this.byteSeconds = byteSecondsOf(workers);
    this.split = input.layers.map((_, layer) => this.splitAfresh(layer));
  }

  layerSeconds(): number[] {
    return this.input.layers.map((_, layer) => this.seconds(layer));
  }

  /** Improves every layer for which it pays, the least even ones first. Returns whether there was one. */
  round(): boolean {
    const uneven = this.split
      .map(({ peak, evenLevel }, layer) => ({ layer, peak, excess: peak - evenLevel }))
      .filter(({ peak, excess }) => excess > gainShareMin * peak)
      .sort((a, b) => b.excess - a.excess || a.layer - b.layer);
    let changed = false;
    for (const [index, { layer }] of uneven.entries()) {
      const evening = this.evening(layer, uneven.length - index);
      const gathering = this.gathering(layer, evening);
      changed = this.take(layer, [...evening, ...gathering]) || changed;
    }
    for (const layer of this.split.keys()) changed = this.take(layer, this.gathering(layer, [])) || changed;
    return changed;
  }

  /** What makes a layer more even, as far as it pays. `layersLeft`: those that may take memory, this one included. */
  private evening(layer: number, layersLeft: number): Change[] {
    const { copiesMin, replicaSlots } = this.input;
    const copies = this.splitAfresh(layer);
    const before = copies.peak;
    const { expertBytes } = this.input.layers[layer]!;
    const improvement = new Improvement(copies, {
      room: this.draft.free.map((free) => Math.ceil(Math.floor(free / expertBytes) / layersLeft)),
      copiesMax: copies.experts * copiesMin + (replicaSlots ?? Number.POSITIVE_INFINITY),
      copiesMin,
      hostOf: this.hostOf,
      hosts: this.hosts,
      closed: this.closed,
    });
    const changes: Change[] = [];
    const effort = new Effort(this.input, this.byteSeconds);
    let best = { worth: 0, changes: 0 };
    for (let made = improvement.step(); made.length > 0; made = improvement.step()) {
      changes.push(...made);
      for (const change of made) effort.add(layer, change);
      const worth = this.worth(before, copies.peak, effort);
      if (worth > best.worth) best = { worth, changes: changes.length };
    }
    return changes.slice(0, best.changes);
  }

  /** What brings experts that are chosen together to one worker, after other changes, where links between hosts are to be spared. */
  private gathering(layer: number, after: readonly Change[]): Change[] {
    const { input, hostOf, hosts, closed } = this;
    const { choices } = input.layers[layer]!;
    if (input.crossingSeconds === 0 || hosts === 1 || choices === null) return [];
    this.apply(layer, after, true);
    const copies = this.splitAfresh(layer);
    this.apply(layer, after.toReversed(), false);
    const levelMax = Math.max(copies.peak, copies.evenLevel * (1 + levelShareMax));
    return new Affinity(copies, { choices, topK: input.topK, hostOf, hosts, closed, levelMax }).run();
  }

  /** Changes the draft of a layer, if that pays with the rows split afresh. */
  private take(layer: number, changes: readonly Change[]): boolean {
    if (changes.length === 0) return false;
    const before = this.seconds(layer);
    const effort = new Effort(this.input, this.byteSeconds);
    for (const change of changes) effort.add(layer, change);
    this.apply(layer, changes, true);
    this.split[layer] = this.splitAfresh(layer);
    if (this.worth(before, this.seconds(layer), effort) > 0) return true;
    this.apply(layer, changes.toReversed(), false);
    this.split[layer] = this.splitAfresh(layer);
    return false;
  }

  private apply(layer: number, changes: readonly Change[], forward: boolean): void {
    for (const { expert, worker, comes } of changes) {
      if (comes === forward) this.draft.add({ layer, expert }, worker);
      else this.draft.remove({ layer, expert }, worker);
    }
  }

  /**
   * What a layer takes in a second: of its busiest worker, and of the links between hosts, where rows are taken to come from all hosts alike. Links without a known
   * speed, and tokens of which no sample is known, take nothing.
   */
  private seconds(layer: number): number {
    const { workers, layers, topK, crossingSeconds } = this.input;
    const copies = this.split[layer]!;
    const { choices, loads } = layers[layer]!;
    if (crossingSeconds === 0 || this.hosts === 1 || choices === null) return copies.peak;
    const tokens = loads.reduce((sum, rows) => sum + rows, 0) / topK;
    const perToken = workersPerToken(copies, layers[layer]!, topK, workers.length);
    return copies.peak + tokens * perToken * (1 - 1 / this.hosts) * crossingSeconds;
  }

  /** Seconds gained beyond what a change must gain to pay; 0 or less: it does not. */
  private worth(before: number, after: number, { costSeconds, loading }: Effort): number {
    if (after > before * (1 - gainShareMin)) return 0;
    return gainFrom(this.input, loading, before - after) - gainOverCostMin * costSeconds;
  }

  private splitAfresh(layer: number): LayerCopies {
    return new LayerCopies(this.input.layers[layer]!.loads, this.rates, this.draft.copies[layer]!);
  }
}

/** Of a change, from the present copies: what is loaded, and what that costs. */
class Effort {
  costSeconds = 0;
  readonly loading: Loading;

  constructor(
    private readonly input: PlanInput,
    private readonly byteSeconds: Float64Array,
  ) {
    this.loading = new Loading(input);
  }

  /** A copy that is there at present takes nothing. */
  add(layer: number, { expert, worker, comes }: Change): void {
    const holders = this.input.present[layer]![expert]!;
    if (holders.includes(worker)) return;
    const { expertBytes } = this.input.layers[layer]!;
    const sign = comes ? 1 : -1;
    this.costSeconds += sign * expertBytes * this.byteSeconds[worker]!;
    this.loading.add(worker, expertBytes, holders.length > 0, sign);
  }
}

/** [workers] What one byte costs. */
function byteSecondsOf(workers: PlanInput['workers']): Float64Array {
  const rate = workers.reduce((sum, { rowsPerSecond }) => sum + rowsPerSecond, 0);
  return Float64Array.from(
    workers,
    ({ rowsPerSecond, loadBytesPerSecond }) => rowsPerSecond / rate / loadBytesPerSecond,
  );
}

/** What seconds that are saved in each second come to within the horizon, from when everything is loaded. */
function gainFrom({ horizonSeconds }: PlanInput, loading: Loading, savedSeconds: number): number {
  return Math.max(0, horizonSeconds - loading.seconds) * savedSeconds;
}

/** What `target` gains over `least`, with the layers loaded one after the other, and what it costs more. */
function gainOf(input: PlanInput, least: Outcome, target: Outcome) {
  const effort = new Effort(input, byteSecondsOf(input.workers));
  let gainSeconds = 0;
  for (const [layer, experts] of target.copies.entries()) {
    for (const [expert, holders] of experts.entries()) {
      for (const worker of holders) effort.add(layer, { expert, worker, comes: true });
      for (const worker of least.copies[layer]![expert]!) effort.add(layer, { expert, worker, comes: false });
    }
    gainSeconds += gainFrom(input, effort.loading, least.seconds[layer]! - target.seconds[layer]!);
  }
  return { gainSeconds, costSeconds: effort.costSeconds };
}

function summarize(input: PlanInput, least: Outcome, target: Outcome): Plan {
  const { workers, layers, topK, present } = input;
  const loading = loadingOf(input, target.copies);
  const count = (all: Copies) => all.flat().reduce((sum, { length }) => sum + length, 0);
  const { gainSeconds, costSeconds } = gainOf(input, least, target);
  return {
    target: target.copies,
    predicted: {
      present: predict(workers, layers, topK, present),
      target: predict(workers, layers, topK, target.copies),
    },
    copiesToLoad: loading.copies,
    copiesToDrop: count(present) + loading.copies - count(target.copies),
    copiesRequired: Math.min(loadingOf(input, least.copies).copies, loading.copies),
    bytesToLoad: loading.bytes,
    secondsToLoad: loading.seconds,
    gainSeconds,
    costSeconds,
    netGainSeconds: gainSeconds - costSeconds,
  };
}
