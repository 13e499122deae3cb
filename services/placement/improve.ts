import { HostSpread } from './host-spread.js';
import type { LayerCopies } from './layer-copies.js';

/** A layer whose peak is above the even level by less than this share of it is even. */
const even = 1e-3;
/** Of what the peak is above the even level: who is below the peak by less counts as at it, and a step must relieve a worker by more. */
const peakShare = 0.02;
const gainMin = 0.005;
/**
 * A step is chosen by what it does to two or three workers; the split that follows may bring others back to the peak. So many steps for each worker may
 * pass before the peak sinks: those that make room, and several for one worker, count too.
 */
const stepsPerWorker = 8;
/** A split that is not quite the best one is good enough between steps, and the next step goes on with it. */
const settlingPasses = 10;
/** Of the workers at the peak, and of those with room, so many are looked at for one step. */
const sourcesMax = 4;
const thirdsMax = 4;
/** Of the least loaded workers, so many in all, and at least so many of each host. */
const targetsMin = 16;
const targetsOfHostMin = 2;

export interface LayerBounds {
  /** [workers] Copies that each may take beyond those that it has. */
  room: Float64Array;
  /** Copies that the layer may have. */
  copiesMax: number;
  /** Copies that every expert keeps, on as many hosts if there are. */
  copiesMin: number;
  /** [workers] Number of its host. */
  hostOf: Uint32Array;
  hosts: number;
  /** Workers that get no copies. */
  closed: ReadonlySet<number>;
}

/** A copy that comes to a worker, or goes. */
export interface Change {
  expert: number;
  worker: number;
  comes: boolean;
}

/** Brings rows of `expert` from worker `from`, which is at the peak, to worker `to`. */
interface Step {
  expert: number;
  from: number;
  to: number;
  /** Whether the copy on `from` goes. */
  leaves: boolean;
  /** The expert whose copy makes room on `to`; -1: there is room. */
  out: number;
  /** Where that copy comes to; -1: nowhere. */
  outTo: number;
}

/**
 * Changes the copies of a layer step by step. Each step relieves a worker at the peak and, by what it reckons, raises no other to it, so that in the end
 * the peak sinks. Among the steps it takes that after which the busiest worker concerned is the least busy, for each copy to load.
 */
export class Improvement {
  private readonly spread: HostSpread;
  /** Who is at this level or above is at the peak. */
  private high = 0;
  private best: Step | null = null;
  private bestGain = 0;
  /** The lowest peak so far, and the steps since. */
  private lowest = Number.POSITIVE_INFINITY;
  private stepsSince = 0;
  /** Workers with room, the least loaded first. */
  private thirds: number[] = [];

  constructor(
    private readonly layer: LayerCopies,
    private readonly bounds: LayerBounds,
  ) {
    this.spread = new HostSpread(layer, bounds.hostOf, bounds.hosts);
  }

  /** Makes the best step and returns its changes: none if there is no such step, the layer is even, or steps have ceased to lower the peak. */
  step(): Change[] {
    const { layer } = this;
    const { peak, evenLevel } = layer;
    if (peak <= evenLevel * (1 + even) || !this.isGettingEven(peak, evenLevel)) return [];
    this.best = null;
    this.high = peak - (peak - evenLevel) * peakShare;
    this.bestGain = (peak - evenLevel) * gainMin;
    const workers = [...layer.rates.keys()];
    const sources = workers.filter((worker) => layer.level(worker) >= this.high);
    const byLevel = workers.sort((a, b) => layer.level(a) - layer.level(b) || a - b);
    const targets = this.targets(byLevel.slice(0, workers.length - sources.length));
    const { room, closed } = this.bounds;
    this.thirds = byLevel.filter((worker) => room[worker]! > 0 && !closed.has(worker)).slice(0, thirdsMax);
    for (const from of sources.slice(0, sourcesMax)) {
      const rows = (expert: number) => layer.rowsAt(from, expert);
      const experts = [...layer.expertsAt[from]!].sort((a, b) => rows(b) - rows(a) || a - b);
      for (const expert of experts) {
        // A step relieves the worker by no more than these rows.
        if (rows(expert) <= this.bestGain * layer.rates[from]!) break;
        for (const to of targets) if (!layer.holds(to, expert)) this.consider(expert, from, to);
      }
    }
    if (this.best !== null) return this.make(this.best);
    return layer.count >= this.bounds.copiesMax ? this.retire() : [];
  }

  private isGettingEven(peak: number, evenLevel: number): boolean {
    if (
      peak < this.lowest - (this.lowest - evenLevel) * gainMin ||
      this.lowest === Number.POSITIVE_INFINITY
    ) {
      this.lowest = peak;
      this.stepsSince = 0;
    } else {
      this.stepsSince += 1;
    }
    return this.stepsSince <= stepsPerWorker * this.layer.workers;
  }

  private targets(byLevel: readonly number[]): number[] {
    const { hosts, hostOf, closed } = this.bounds;
    const ofHostMax = Math.max(targetsOfHostMin, Math.ceil(targetsMin / hosts));
    const ofHost = new Uint32Array(hosts);
    return byLevel.filter((worker) => !closed.has(worker) && ++ofHost[hostOf[worker]!]! <= ofHostMax);
  }

  private consider(expert: number, from: number, to: number): void {
    const { layer, bounds } = this;
    const rows = layer.rowsAt(from, expert);
    const keepsHosts = this.spread.keeps(expert, from, to);
    const mayAdd = this.mayAdd(expert, to);
    const mayGrow = mayAdd && layer.count < bounds.copiesMax;
    const moves = { expert, from, to, leaves: true, out: -1, outTo: -1 };
    const adds = { ...moves, leaves: false };
    if (bounds.room[to]! > 0) {
      if (keepsHosts) this.offer(this.gain(from, to, rows, rows, 0, 0), moves);
      if (mayGrow) this.offer(this.gain(from, to, 0, rows, 0, 0), adds);
    }
    const levelFrom = layer.level(from);
    const rateFrom = layer.rates[from]!;
    const rateTo = layer.rates[to]!;
    for (const out of layer.expertsAt[to]!) {
      // Most experts are ruled out here, by what could be gained if their rows went nowhere and all could be split.
      const outRows = layer.rowsAt(to, out);
      const all = layer.load[from]! + layer.load[to]! - outRows;
      const most = Math.min(rows / rateFrom, levelFrom - all / (rateFrom + rateTo));
      if (most <= this.bestGain) continue;
      if (mayAdd && layer.workersOf[out]!.length > bounds.copiesMin)
        this.considerDrop(adds, rows, out, outRows);
      // What follows loads two copies.
      if (most / 2 <= this.bestGain) continue;
      if (keepsHosts) this.considerSwap(moves, rows, out, outRows);
      if (mayGrow) this.considerThird(adds, rows, out, outRows);
    }
  }

  /** The copy that makes room is dropped; what its expert's other copies cannot take below the peak comes to `from`, if that is one. */
  private considerDrop(adds: Step, rows: number, out: number, outRows: number): void {
    const { from, to } = adds;
    if (this.gain(from, to, 0, rows, outRows, 0) <= this.bestGain || !this.mayDrop(out, to)) return;
    const back = Math.max(0, outRows - this.roomBeside(out, to));
    if (back > 0 && !this.layer.holds(from, out)) return;
    this.offer(this.gain(from, to, 0, rows, outRows, back), { ...adds, out });
  }

  /** The copy that makes room takes the place of the other. */
  private considerSwap(moves: Step, rows: number, out: number, outRows: number): void {
    const { from, to } = moves;
    const gain = this.gain(from, to, rows, rows, outRows, outRows) / 2;
    if (gain > this.bestGain && this.mayMove(out, to, from)) this.offer(gain, { ...moves, out, outTo: from });
  }

  /** The copy that makes room goes to a worker that has room, which may be `from`. */
  private considerThird(adds: Step, rows: number, out: number, outRows: number): void {
    const { from, to } = adds;
    const { layer } = this;
    const gain = this.gain(from, to, 0, rows, outRows, 0) / 2;
    if (gain <= this.bestGain) return;
    for (const third of this.thirds) {
      const worth =
        third === from
          ? this.gain(from, to, 0, rows, outRows, outRows) / 2
          : Math.min(gain, (layer.level(from) - (layer.load[third]! + outRows) / layer.rates[third]!) / 2);
      if (worth > this.bestGain && third !== to && this.mayMove(out, to, third))
        this.offer(worth, { ...adds, out, outTo: third });
    }
  }

  private offer(gain: number, step: Step): void {
    if (gain <= this.bestGain) return;
    this.best = step;
    this.bestGain = gain;
  }

  private mayMove(expert: number, from: number, to: number): boolean {
    return (
      !this.layer.holds(to, expert) && !this.bounds.closed.has(to) && this.spread.keeps(expert, from, to)
    );
  }

  /**
   * By how far both workers are below the peak when rows between `least` and `most` have gone from one to the other, as many as even them out. Before
   * that `out` rows leave `to`, and `back` come to `from`.
   */
  private gain(from: number, to: number, least: number, most: number, out: number, back: number): number {
    const { load, rates } = this.layer;
    const rateFrom = rates[from]!;
    const rateTo = rates[to]!;
    const atFrom = load[from]! + back;
    const atTo = load[to]! - out;
    const evening = (atFrom * rateTo - atTo * rateFrom) / (rateFrom + rateTo);
    const moved = Math.max(least, Math.min(most, evening));
    return this.layer.level(from) - Math.max((atFrom - moved) / rateFrom, (atTo + moved) / rateTo);
  }

  /** Whether a new copy comes to a host without one, or there is no room on such a host. */
  private mayAdd(expert: number, to: number): boolean {
    const { spread } = this;
    if (spread.copiesBeside(expert, to) === 0 || spread.hostsOf[expert] === spread.hosts) return true;
    const { room, closed } = this.bounds;
    return room.every(
      (one, worker) => one <= 0 || closed.has(worker) || spread.copiesBeside(expert, worker) > 0,
    );
  }

  /** Whether a copy may go for good: enough others stay, on as many hosts as there can be with one copy less. */
  private mayDrop(expert: number, worker: number): boolean {
    const { spread } = this;
    const copies = this.layer.workersOf[expert]!.length;
    if (copies <= this.bounds.copiesMin) return false;
    return spread.copiesBeside(expert, worker) > 1 || copies === spread.hostsOf[expert];
  }

  /** Rows that the other copies of an expert can take without coming to the peak. */
  private roomBeside(expert: number, worker: number): number {
    const { load, rates, workersOf } = this.layer;
    let room = 0;
    for (const other of workersOf[expert]!)
      if (other !== worker) room += Math.max(0, this.high * rates[other]! - load[other]!);
    return room;
  }

  /** Where the layer has all the copies that it may have: drops the one with the fewest rows, so that another can come. */
  private retire(): Change[] {
    const { layer } = this;
    let least: Change | null = null;
    let leastRows = Number.POSITIVE_INFINITY;
    for (const [expert, holders] of layer.workersOf.entries()) {
      for (const worker of holders) {
        const rows = layer.rowsAt(worker, expert);
        if (rows >= leastRows || !this.mayDrop(expert, worker) || this.roomBeside(expert, worker) < rows)
          continue;
        least = { expert, worker, comes: false };
        leastRows = rows;
      }
    }
    return least === null ? [] : this.apply([least]);
  }

  private make({ expert, from, to, leaves, out, outTo }: Step): Change[] {
    const changes: Change[] = [];
    if (leaves) changes.push({ expert, worker: from, comes: false });
    if (out >= 0) changes.push({ expert: out, worker: to, comes: false });
    if (outTo >= 0) changes.push({ expert: out, worker: outTo, comes: true });
    changes.push({ expert, worker: to, comes: true });
    return this.apply(changes);
  }

  private apply(changes: Change[]): Change[] {
    for (const { expert, worker, comes } of changes) {
      if (comes) this.layer.add(expert, worker);
      else this.layer.remove(expert, worker);
      this.spread.count(expert, worker, comes);
      this.bounds.room[worker]! += comes ? -1 : 1;
    }
    this.layer.settle(
      changes.map(({ expert }) => expert),
      settlingPasses,
    );
    return changes;
  }
}
