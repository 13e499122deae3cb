import type { Draft } from './draft.js';
import { type Change, Improvement } from './improve.js';
import { type Copies, checkInput, type PlanInput } from './input.js';
import { LayerCopies } from './layer-copies.js';
import { loadingOf } from './loading.js';
import { type LayerPrediction, predict, workersPerToken } from './predict.js';
import { requiredCopies } from './required.js';
import { Affinity } from './traffic.js';

/** A layer is changed only if its seconds sink by this share of them, so that noise in the load moves nothing. */
export const gainShareMin = 0.02;
/** For less traffic the busiest worker may be above the even level by this share of it. */
const levelShareMax = 0.02;
/** And only if the seconds that this saves over the horizon are so many times those that loading costs. */
export const gainOverCostMin = 2;

export interface Plan {
  /** Where every copy shall be. */
  target: Copies;
  predicted: { present: LayerPrediction[]; target: LayerPrediction[] };
  /** Copies of the target that are not there, and copies that are there and not in the target. */
  copiesToLoad: number;
  copiesToDrop: number;
  bytesToLoad: number;
  /** Until all of them are there, as limits and workers let them be loaded. */
  secondsToLoad: number;
  /** What the layers take less over the horizon than they would if only missing copies were loaded: time of the busiest workers, and of the links between hosts. */
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
  const draft = requiredCopies(input);
  const least = new Planner(input, draft).total();
  // What a plan from the target would change is part of this one: it pays what it costs from there, which is no less than from here.
  let from: Copies = input.present;
  for (let rests = false; !rests; ) {
    const planner = new Planner({ ...input, present: from }, draft);
    // Ends, for every round but the last lowers the sum of the layers' seconds.
    while (planner.round());
    rests = draft.isAt(from);
    from = draft.copies.map((experts) => experts.map((holders) => [...holders]));
  }
  return summarize(input, draft.copies, new Planner(input, draft).total(), least);
}

interface Total {
  /** Of all layers, as `Planner.seconds`. */
  seconds: number;
  costSeconds: number;
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
    const rate = this.rates.reduce((sum, one) => sum + one, 0);
    this.byteSeconds = Float64Array.from(
      workers,
      ({ rowsPerSecond, loadBytesPerSecond }) => rowsPerSecond / rate / loadBytesPerSecond,
    );
    this.split = input.layers.map((_, layer) => this.splitAfresh(layer));
  }

  total(): Total {
    const total = { seconds: 0, costSeconds: 0 };
    for (const [index, experts] of this.draft.copies.entries()) {
      total.seconds += this.seconds(index);
      for (const [expert, holders] of experts.entries())
        for (const worker of holders) total.costSeconds += this.copySeconds(index, expert, worker);
    }
    return total;
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
    let costSeconds = 0;
    let best = { worth: 0, changes: 0 };
    for (let made = improvement.step(); made.length > 0; made = improvement.step()) {
      changes.push(...made);
      costSeconds += this.costOf(layer, made);
      const worth = this.worth(before, copies.peak, costSeconds);
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
    this.apply(layer, changes, true);
    this.split[layer] = this.splitAfresh(layer);
    if (this.worth(before, this.seconds(layer), this.costOf(layer, changes)) > 0) return true;
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
  private worth(before: number, after: number, costSeconds: number): number {
    if (after > before * (1 - gainShareMin)) return 0;
    return this.input.horizonSeconds * (before - after) - gainOverCostMin * costSeconds;
  }

  private costOf(layer: number, changes: readonly Change[]): number {
    return changes.reduce((sum, { expert, worker, comes }) => {
      return sum + (comes ? 1 : -1) * this.copySeconds(layer, expert, worker);
    }, 0);
  }

  /** What a copy costs; nothing if it is there at present. */
  private copySeconds(layer: number, expert: number, worker: number): number {
    const isPresent = this.input.present[layer]![expert]!.includes(worker);
    return isPresent ? 0 : this.input.layers[layer]!.expertBytes * this.byteSeconds[worker]!;
  }

  private splitAfresh(layer: number): LayerCopies {
    return new LayerCopies(this.input.layers[layer]!.loads, this.rates, this.draft.copies[layer]!);
  }
}

function summarize(input: PlanInput, target: Copies, total: Total, least: Total): Plan {
  const { workers, layers, topK, present, horizonSeconds } = input;
  const loading = loadingOf(input, target);
  const copies = (all: Copies) => all.flat().reduce((sum, { length }) => sum + length, 0);
  const gainSeconds = horizonSeconds * (least.seconds - total.seconds);
  const costSeconds = total.costSeconds - least.costSeconds;
  return {
    target,
    predicted: {
      present: predict(workers, layers, topK, present),
      target: predict(workers, layers, topK, target),
    },
    copiesToLoad: loading.copies,
    copiesToDrop: copies(present) + loading.copies - copies(target),
    bytesToLoad: loading.bytes,
    secondsToLoad: loading.seconds,
    gainSeconds,
    costSeconds,
    netGainSeconds: gainSeconds - costSeconds,
  };
}
