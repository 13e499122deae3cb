import { insert, remove } from './sorted-list.js';

/** Passes over the experts that have several copies; each brings the split nearer to the best one, and this many mostly to it. */
const passesMax = 500;
/** Rows of an expert that change their copy, as a share of all rows, below which they do not matter to other experts. */
const settled = 1e-6;

/** The copies of one layer's experts, and how the rows of each expert are split over its copies. */
export class LayerCopies {
  readonly experts: number;
  readonly workers: number;
  /** [experts] → the workers that hold a copy, ascending. */
  readonly workersOf: number[][];
  /** [workers] → the experts of which it holds a copy, ascending. */
  readonly expertsAt: number[][];
  /** [experts, workers] Rows a second that go to each copy. */
  readonly rows: Float64Array;
  /** [workers] Their sums. */
  readonly load: Float64Array;
  /** Copies of all experts. */
  count = 0;

  /** `loads`: [experts] rows a second. `rates`: [workers] rows that each computes a second. */
  constructor(
    readonly loads: Float64Array,
    readonly rates: Float64Array,
    workersOf: readonly (readonly number[])[],
  ) {
    this.experts = loads.length;
    this.workers = rates.length;
    this.workersOf = workersOf.map((holders) => [...holders]);
    this.expertsAt = Array.from(rates, () => []);
    this.rows = new Float64Array(this.experts * this.workers);
    this.load = new Float64Array(this.workers);
    for (const [expert, holders] of this.workersOf.entries()) {
      this.count += holders.length;
      for (const worker of holders) this.expertsAt[worker]!.push(expert);
    }
    this.split();
  }

  /** Seconds a second for which a worker computes. */
  level(worker: number): number {
    return this.load[worker]! / this.rates[worker]!;
  }

  /** The highest level. */
  get peak(): number {
    let peak = 0;
    for (let worker = 0; worker < this.workers; worker += 1) peak = Math.max(peak, this.level(worker));
    return peak;
  }

  /** The level of all if the rows could be shared at will. */
  get evenLevel(): number {
    const sum = (values: Float64Array) => values.reduce((total, value) => total + value, 0);
    return sum(this.load) / sum(this.rates);
  }

  holds(worker: number, expert: number): boolean {
    return this.workersOf[expert]!.includes(worker);
  }

  rowsAt(worker: number, expert: number): number {
    return this.rows[expert * this.workers + worker]!;
  }

  /** A copy that gets no rows until the next `settle`. */
  add(expert: number, worker: number): void {
    insert(this.workersOf[expert]!, worker);
    insert(this.expertsAt[worker]!, expert);
    this.count += 1;
  }

  /** The copy's rows go nowhere until the next `settle`. */
  remove(expert: number, worker: number): void {
    remove(this.workersOf[expert]!, worker);
    remove(this.expertsAt[worker]!, expert);
    this.count -= 1;
    this.load[worker]! -= this.rowsAt(worker, expert);
    this.rows[expert * this.workers + worker] = 0;
  }

  /** Gives rows to a copy that has none. */
  put(worker: number, expert: number, rows: number): void {
    this.rows[expert * this.workers + worker] = rows;
    this.load[worker]! += rows;
  }

  /** Brings the split nearer to the best one again after copies came or went. `changed`: experts whose copies did. */
  settle(changed: readonly number[], passesMax: number): void {
    const unsettled = new Uint8Array(this.experts);
    const least = settled * this.loads.reduce((sum, rows) => sum + rows, 0);
    const fill = (expert: number) => {
      unsettled[expert] = 0;
      if (this.fill(expert) <= least) return;
      for (const worker of this.workersOf[expert]!)
        for (const other of this.expertsAt[worker]!) if (other !== expert) unsettled[other] = 1;
    };
    for (const expert of changed) fill(expert);
    // A copy that went has left room on a worker that its expert no longer names.
    unsettled.fill(1);
    const replicated = this.replicated();
    for (let pass = 0, calm = false; pass < passesMax && !calm; pass += 1) {
      calm = true;
      for (const expert of replicated) {
        if (unsettled[expert] === 0) continue;
        calm = false;
        fill(expert);
      }
    }
  }

  /** The split does not depend on what was there before: the largest experts first, those with one copy before all. */
  private split(): void {
    for (const [expert, [worker, second]] of this.workersOf.entries()) {
      if (worker !== undefined && second === undefined) this.fill(expert);
    }
    const replicated = this.replicated();
    replicated.sort((a, b) => this.loads[b]! - this.loads[a]! || a - b);
    this.settle(replicated, passesMax);
  }

  private replicated(): number[] {
    const experts: number[] = [];
    for (let expert = 0; expert < this.experts; expert += 1)
      if (this.workersOf[expert]!.length > 1) experts.push(expert);
    return experts;
  }

  /**
   * Shares the rows of an expert out to its copies, as water fills vessels: its workers get the same level, except those that
   * are above it without this expert. Returns the rows that went to another copy than before.
   */
  private fill(expert: number): number {
    const holders = this.workersOf[expert]!;
    const { workers, rows, load, rates } = this;
    const base = expert * workers;
    const demand = this.loads[expert]!;
    let level = Number.POSITIVE_INFINITY;
    let last: number;
    do {
      last = level;
      let rate = 0;
      let volume = demand;
      for (const worker of holders) {
        const others = load[worker]! - rows[base + worker]!;
        if (others >= last * rates[worker]!) continue;
        rate += rates[worker]!;
        volume += others;
      }
      if (rate > 0) level = volume / rate;
    } while (level < last);
    let moved = 0;
    for (const worker of holders) {
      const others = load[worker]! - rows[base + worker]!;
      const share = Math.max(0, level * rates[worker]! - others);
      moved += Math.abs(share - rows[base + worker]!);
      rows[base + worker] = share;
      load[worker] = others + share;
    }
    return moved;
  }
}
