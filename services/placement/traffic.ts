import { HostSpread } from './host-spread.js';
import type { Change } from './improve.js';
import type { LayerCopies } from './layer-copies.js';

/** Ends a search that gains little for long; each pass looks at all pairs of experts. */
const passesMax = 50;

export interface TrafficBounds {
  /** [tokens, topK] The experts of a sample of tokens. */
  choices: Uint32Array;
  /** Experts of a token. */
  topK: number;
  /** [workers] Number of its host. */
  hostOf: Uint32Array;
  hosts: number;
  /** Workers that get no copies. */
  closed: ReadonlySet<number>;
  /** The level that no worker may come to by a change, unless it is above it and sinks. */
  levelMax: number;
}

/**
 * Brings experts that tokens choose together to one worker, so that their rows go to fewer. Pairs of experts change places as long as more of those that are chosen
 * together come together than are torn apart (Kernighan and Lin's heuristic for graphs). An expert with several copies counts where it has the most rows.
 */
export class Affinity {
  private readonly experts: number;
  /** [experts] The worker with most of its rows; -1: none. */
  private readonly homeOf: Int32Array;
  /** [experts, experts] Tokens of the sample that choose both. */
  private readonly together: Float64Array;
  /** [experts, workers] Sums of `together` over the experts at home on a worker. */
  private readonly ties: Float64Array;
  private readonly spread: HostSpread;
  private readonly changes: Change[] = [];

  constructor(
    private readonly layer: LayerCopies,
    private readonly bounds: TrafficBounds,
  ) {
    const { experts, workers, workersOf } = layer;
    this.experts = experts;
    this.homeOf = Int32Array.from(workersOf, (holders, expert) =>
      holders.reduce((best, worker) => {
        return best < 0 || layer.rowsAt(worker, expert) > layer.rowsAt(best, expert) ? worker : best;
      }, -1),
    );
    this.together = pairsOf(bounds, experts);
    this.ties = new Float64Array(experts * workers);
    this.spread = new HostSpread(layer, bounds.hostOf, bounds.hosts);
    for (let other = 0; other < experts; other += 1)
      if (this.homeOf[other]! >= 0) this.settle(other, this.homeOf[other]!, 1);
  }

  /** The changes, in pairs that change places. The rows of the layer are not split afresh. */
  run(): Change[] {
    for (let pass = 0; pass < passesMax && this.pass(); pass += 1);
    return this.changes;
  }

  private pass(): boolean {
    let changed = false;
    for (let expert = 0; expert < this.experts; expert += 1) {
      const other = this.bestFor(expert);
      if (other < 0) continue;
      this.swap(expert, other);
      changed = true;
    }
    return changed;
  }

  /** The expert to change places with; -1: none is worth it. */
  private bestFor(expert: number): number {
    const { homeOf, ties, together, experts } = this;
    const { workers } = this.layer;
    const home = homeOf[expert]!;
    if (home < 0) return -1;
    let best = -1;
    let most = 0;
    for (let other = 0; other < experts; other += 1) {
      const there = homeOf[other]!;
      if (there === home || there < 0) continue;
      const gain =
        ties[expert * workers + there]! -
        ties[expert * workers + home]! +
        ties[other * workers + home]! -
        ties[other * workers + there]! -
        2 * together[expert * experts + other]!;
      if (gain <= most || !this.maySwap(expert, other)) continue;
      best = other;
      most = gain;
    }
    return best;
  }

  private maySwap(expert: number, other: number): boolean {
    const { layer, spread, homeOf } = this;
    const home = homeOf[expert]!;
    const there = homeOf[other]!;
    const { closed } = this.bounds;
    if (closed.has(home) || closed.has(there)) return false;
    if (layer.holds(there, expert) || layer.holds(home, other)) return false;
    const rows = layer.rowsAt(there, other) - layer.rowsAt(home, expert);
    return (
      this.mayCome(home, rows) &&
      this.mayCome(there, -rows) &&
      spread.keeps(expert, home, there) &&
      spread.keeps(other, there, home)
    );
  }

  private mayCome(worker: number, rows: number): boolean {
    const { load, rates } = this.layer;
    return rows <= 0 || (load[worker]! + rows) / rates[worker]! <= this.bounds.levelMax;
  }

  private swap(expert: number, other: number): void {
    const home = this.homeOf[expert]!;
    const there = this.homeOf[other]!;
    this.move(expert, home, there);
    this.move(other, there, home);
  }

  private move(expert: number, from: number, to: number): void {
    const rows = this.layer.rowsAt(from, expert);
    this.layer.remove(expert, from);
    this.layer.add(expert, to);
    this.layer.put(to, expert, rows);
    this.spread.count(expert, from, false);
    this.spread.count(expert, to, true);
    this.settle(expert, from, -1);
    this.settle(expert, to, 1);
    this.homeOf[expert] = to;
    this.changes.push({ expert, worker: from, comes: false }, { expert, worker: to, comes: true });
  }

  private settle(expert: number, worker: number, sign: number): void {
    const { experts, together, ties } = this;
    const { workers } = this.layer;
    for (let other = 0; other < experts; other += 1)
      ties[other * workers + worker]! += sign * together[expert * experts + other]!;
  }
}

function pairsOf({ choices, topK }: TrafficBounds, experts: number): Float64Array {
  const together = new Float64Array(experts * experts);
  for (let start = 0; start + topK <= choices.length; start += topK) {
    for (let first = start; first < start + topK; first += 1) {
      for (let second = start; second < start + topK; second += 1)
        if (first !== second) together[choices[first]! * experts + choices[second]!]! += 1;
    }
  }
  return together;
}
