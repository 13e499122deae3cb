import type { Draft } from './draft.js';
import { type Change, Improvement } from './improve.js';
import { type Copies, checkInput, type PlanInput } from './input.js';
import { LayerCopies } from './layer-copies.js';
import { type LayerPrediction, predict } from './predict.js';
import { requiredCopies } from './required.js';

/** A layer is changed only if the time of its busiest worker sinks by this share of it, so that noise in the load moves nothing. */
export const gainShareMin = 0.02;
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
  /** Until the worker with the most to load has done so; all load side by side. */
  secondsToLoad: number;
  /** What the busiest workers of the layers compute less over the horizon than they would if only missing copies were loaded. */
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
  const planner = new Planner(input, draft);
  const least = planner.total();
  // Ends, for every round but the last lowers the sum of the peaks.
  while (planner.round());
  return summarize(input, draft.copies, planner.total(), least);
}

interface Total {
  /** Of all layers. */
  peak: number;
  costSeconds: number;
}

class Planner {
  private readonly rates: Float64Array;
  private readonly hostOf: Uint32Array;
  private readonly hosts: number;
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
    const total = { peak: 0, costSeconds: 0 };
    for (const [index, experts] of this.draft.copies.entries()) {
      total.peak += this.split[index]!.peak;
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
    for (const [index, { layer }] of uneven.entries())
      changed = this.improve(layer, uneven.length - index) || changed;
    return changed;
  }

  /** `layersLeft`: those that may take memory, this one included. */
  private improve(layer: number, layersLeft: number): boolean {
    const { copiesMin, replicaSlots } = this.input;
    const copies = this.split[layer]!;
    const before = copies.peak;
    const { expertBytes } = this.input.layers[layer]!;
    const improvement = new Improvement(copies, {
      room: this.draft.free.map((free) => Math.ceil(Math.floor(free / expertBytes) / layersLeft)),
      copiesMax: copies.experts * copiesMin + (replicaSlots ?? Number.POSITIVE_INFINITY),
      copiesMin,
      hostOf: this.hostOf,
      hosts: this.hosts,
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
    return this.take(layer, before, changes.slice(0, best.changes));
  }

  /** Changes the draft of a layer, if that pays with the rows split afresh. */
  private take(layer: number, before: number, changes: readonly Change[]): boolean {
    this.apply(layer, changes, true);
    this.split[layer] = this.splitAfresh(layer);
    if (this.worth(before, this.split[layer].peak, this.costOf(layer, changes)) > 0) return true;
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

  /** Seconds gained beyond what a change must gain to pay; 0 or less: it does not. */
  private worth(peakBefore: number, peak: number, costSeconds: number): number {
    if (peak > peakBefore * (1 - gainShareMin)) return 0;
    return this.input.horizonSeconds * (peakBefore - peak) - gainOverCostMin * costSeconds;
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
  const bytes = new Float64Array(workers.length);
  const plan = { copiesToLoad: 0, copiesToDrop: 0 };
  for (const [layer, { expertBytes, loads }] of layers.entries()) {
    for (const expert of loads.keys()) {
      const [before, after] = [present[layer]![expert]!, target[layer]![expert]!];
      plan.copiesToDrop += before.filter((worker) => !after.includes(worker)).length;
      for (const worker of after) {
        if (before.includes(worker)) continue;
        plan.copiesToLoad += 1;
        bytes[worker]! += expertBytes;
      }
    }
  }
  const gainSeconds = horizonSeconds * (least.peak - total.peak);
  const costSeconds = total.costSeconds - least.costSeconds;
  return {
    target,
    predicted: {
      present: predict(workers, layers, topK, present),
      target: predict(workers, layers, topK, target),
    },
    ...plan,
    bytesToLoad: bytes.reduce((sum, one) => sum + one, 0),
    secondsToLoad: Math.max(...bytes.map((one, worker) => one / workers[worker]!.loadBytesPerSecond)),
    gainSeconds,
    costSeconds,
    netGainSeconds: gainSeconds - costSeconds,
  };
}
