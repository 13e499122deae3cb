import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { Reconciler, type Steps } from '../../services/placement/reconcile.js';

/** A worker that loads and drops what it is told to, when the test lets it. */
class ModelWorker {
  alive = true;
  reached = true;
  acknowledged = 0;
  /** As it reported last. */
  readonly reported = new Set<number>();
  /** What lies in its memory. */
  readonly holds = new Set<number>();
  private told: { version: number; experts: number[] } = { version: 0, experts: [] };

  constructor(readonly capacity: number) {}

  has(expert: number): boolean {
    return this.reported.has(expert);
  }

  tell(version: number, experts: number[]): void {
    this.told = { version, experts };
    expect(experts.length).toBeLessThanOrEqual(this.capacity);
  }

  /** Drops what it is not to hold, loads at most one expert, and reports. */
  work(): void {
    for (const expert of this.holds) if (!this.told.experts.includes(expert)) this.holds.delete(expert);
    const missing = this.told.experts.find((expert) => !this.holds.has(expert));
    if (missing !== undefined) this.holds.add(missing);
    expect(this.holds.size).toBeLessThanOrEqual(this.capacity);
    this.report();
  }

  die(): void {
    this.alive = false;
    this.holds.clear();
    this.reported.clear();
    this.told = { version: 0, experts: [] };
    this.acknowledged = 0;
  }

  private report(): void {
    this.acknowledged = this.told.version;
    this.reported.clear();
    for (const expert of this.holds) this.reported.add(expert);
  }
}

const loadsMax = 2;

class ModelCluster {
  readonly reconciler: Reconciler;
  readonly workers: ModelWorker[];
  target: number[][];
  /** The oldest epoch that each router uses. */
  readonly routers: number[] = [0, 0];
  loadsNow = 1;
  steps: Steps | null = null;

  constructor(
    readonly experts: number,
    capacities: readonly number[],
  ) {
    this.reconciler = new Reconciler(experts);
    this.workers = capacities.map((capacity) => new ModelWorker(capacity));
    for (const slot of this.workers.keys()) this.reconciler.adopt(slot, []);
    this.target = Array.from({ length: experts }, () => []);
  }

  /** Copies that a router holds beyond its epoch, as expert/slot. */
  readonly held = new Set<string>();

  reconcile(): Steps {
    const { reconciler, workers } = this;
    const before = reconciler.published.map((slots) => [...slots]);
    const steps = reconciler.reconcile({
      holders: workers,
      target: this.target,
      oldestInUse: Math.min(...this.routers),
      isHeld: (expert, slot) => this.held.has(`${expert}/${slot}`),
      loadsMax,
      loadsNow: this.loadsNow,
    });
    this.steps = steps;
    for (const slot of steps.assigned)
      workers[slot]!.tell(
        reconciler.versions[slot]!,
        [...reconciler.assigned.keys()].filter((expert) => reconciler.assigned[expert]!.includes(slot)),
      );
    this.check(before);
    expect(steps.begun).toBeLessThanOrEqual(this.loadsNow);
    if (steps.begun > 0) expect(this.loadingBesides()).toBeLessThanOrEqual(loadsMax);
    return steps;
  }

  /** Targets whose workers have died are planned anew, as the coordinator does. */
  retarget(target: number[][]): void {
    this.target = target.map((slots) => slots.filter((slot) => this.workers[slot]!.alive));
  }

  giveUp(stuck: readonly number[]): void {
    for (const expert of stuck) this.target[expert] = [...this.reconciler.assigned[expert]!];
  }

  /** Every router comes to the present epoch, every worker does what it can. */
  settle(): void {
    for (let round = 0; round < 40 * (this.experts + 1); round += 1) {
      const { assigned, published, stuck } = this.reconcile();
      this.giveUp(stuck);
      this.routers.fill(this.reconciler.epoch);
      for (const worker of this.workers) if (worker.alive) worker.work();
      if (round > 3 && assigned.size + published.length + stuck.length === 0 && this.reached()) return;
    }
    expect(this.reconciler.published).toEqual(this.target);
  }

  reached(): boolean {
    const { reconciler, target } = this;
    const same = (a: readonly number[], b: readonly number[]) => a.join() === b.join();
    return target.every(
      (wanted, expert) =>
        same(reconciler.published[expert]!, wanted) && same(reconciler.assigned[expert]!, wanted),
    );
  }

  private loadingBesides(): number {
    const { assigned, published } = this.reconciler;
    return assigned.flatMap((slots, expert) =>
      slots.filter((slot) => !this.workers[slot]!.has(expert) && published[expert]!.length > 0),
    ).length;
  }

  private check(before: number[][]): void {
    const { published, assigned } = this.reconciler;
    for (let expert = 0; expert < this.experts; expert += 1) {
      const holders = assigned[expert]!.filter((slot) => this.workers[slot]!.has(expert));
      // Whoever serves has the expert, in truth.
      for (const slot of published[expert]!) expect(this.workers[slot]!.holds.has(expert)).toBe(true);
      if (this.target[expert]!.length > 0 && holders.length > 0)
        expect(published[expert]!.length).toBeGreaterThan(0);
      // What an epoch in use names stays held by a living worker until no router uses that epoch.
      if (published[expert]!.length === 0) continue;
      const alive = before[expert]!.filter((slot) => this.workers[slot]!.alive);
      for (const slot of alive)
        if (Math.min(...this.routers) < this.reconciler.epoch) expect(assigned[expert]).toContain(slot);
    }
  }
}

type Event =
  | { kind: 'work'; slot: number }
  | { kind: 'die'; slot: number }
  | { kind: 'join'; slot: number }
  | { kind: 'router'; router: number }
  | { kind: 'loads'; loads: number }
  | { kind: 'target'; target: number[][] };

const workersMax = 4;
const expertsMax = 6;
const slot = fc.nat({ max: workersMax - 1 });
const targets = fc.array(fc.subarray([0, 1, 2, 3], { minLength: 0, maxLength: 3 }), {
  minLength: expertsMax,
  maxLength: expertsMax,
});
const event: fc.Arbitrary<Event> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('work' as const), slot }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('die' as const), slot }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('join' as const), slot }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('router' as const), router: fc.nat({ max: 1 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('loads' as const), loads: fc.nat({ max: 2 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('target' as const), target: targets }) },
);
const capacities = fc.array(fc.integer({ min: 1, max: expertsMax }), {
  minLength: workersMax,
  maxLength: workersMax,
});

/** As many as fit: a target that exceeds the memory of a worker is no plan. */
function fitting(target: number[][], sizes: readonly number[]): number[][] {
  const left = [...sizes];
  return target.map((slots) =>
    slots.filter((slot) => {
      left[slot]! -= 1;
      return left[slot]! >= 0;
    }),
  );
}

function happen(cluster: ModelCluster, event: Event, sizes: readonly number[]): void {
  const { workers, reconciler } = cluster;
  switch (event.kind) {
    case 'work':
      if (workers[event.slot]!.alive) workers[event.slot]!.work();
      break;
    case 'die':
      workers[event.slot]!.die();
      reconciler.forget(event.slot);
      cluster.retarget(cluster.target);
      break;
    case 'join':
      if (workers[event.slot]!.alive) return;
      workers[event.slot]!.alive = true;
      reconciler.adopt(event.slot, []);
      break;
    case 'router':
      cluster.routers[event.router] = reconciler.epoch;
      break;
    case 'loads':
      cluster.loadsNow = event.loads;
      break;
    case 'target':
      cluster.retarget(fitting(event.target, sizes));
  }
  cluster.giveUp(cluster.reconcile().stuck);
}

describe('the reconciler', () => {
  test('through any history: who serves holds the expert, memory and loads keep their limits, and left alone it ends at the target', () => {
    fc.assert(
      fc.property(capacities, fc.array(event, { maxLength: 60 }), (sizes, history) => {
        const cluster = new ModelCluster(expertsMax, sizes);
        for (const one of history) happen(cluster, one, sizes);
        cluster.loadsNow = 2;
        cluster.settle();
      }),
      { numRuns: 500 },
    );
  });

  test('a copy is loaded and published before the one that it replaces is published no more, and that one is dropped when routers are beyond it', () => {
    const cluster = new ModelCluster(1, [1, 1]);
    cluster.target = [[0]];
    cluster.settle();
    const { reconciler, workers, routers } = cluster;
    cluster.target = [[1]];
    cluster.reconcile();
    expect([reconciler.published, reconciler.assigned]).toEqual([[[0]], [[0, 1]]]);
    workers[1]!.work();
    cluster.reconcile();
    expect([reconciler.published, reconciler.assigned]).toEqual([[[1]], [[0, 1]]]);
    expect(reconciler.isDraining(0, 0)).toBe(true);
    routers[0] = reconciler.epoch;
    cluster.reconcile();
    expect(reconciler.assigned).toEqual([[0, 1]]);
    routers[1] = reconciler.epoch;
    cluster.reconcile();
    expect(reconciler.assigned).toEqual([[1]]);
  });

  test('a copy that a router holds beyond its epoch is kept, and dropped when it is held no more', () => {
    const cluster = new ModelCluster(2, [2, 2]);
    cluster.target = [[0], [0]];
    cluster.settle();
    const { reconciler, workers, routers } = cluster;
    cluster.target = [[1], [1]];
    cluster.held.add('0/0');
    for (let round = 0; round < 3; round += 1) {
      cluster.reconcile();
      workers[1]!.work();
      routers.fill(reconciler.epoch);
    }
    cluster.reconcile();
    expect([reconciler.published, reconciler.assigned]).toEqual([
      [[1], [1]],
      [[0, 1], [1]],
    ]);
    cluster.held.clear();
    cluster.reconcile();
    expect(reconciler.assigned).toEqual([[1], [1]]);
  });

  test('two experts cannot change places where memory is full: the target is given up, and nothing is lost', () => {
    const cluster = new ModelCluster(2, [1, 1]);
    cluster.target = [[0], [1]];
    cluster.settle();
    cluster.target = [[1], [0]];
    const { stuck } = cluster.reconcile();
    expect(stuck).toEqual([0, 1]);
    expect(cluster.reconciler.published).toEqual([[0], [1]]);
  });

  test('where memory is full, a second copy that the target does not have makes room', () => {
    const cluster = new ModelCluster(2, [1, 1]);
    cluster.target = [[0, 1], []];
    cluster.settle();
    cluster.target = [[0], [1]];
    cluster.settle();
    expect(cluster.reconciler.published).toEqual([[0], [1]]);
  });

  test('a move keeps as many copies as before until the new one serves', () => {
    const cluster = new ModelCluster(1, [1, 1, 1]);
    cluster.target = [[0, 1]];
    cluster.settle();
    cluster.target = [[0, 2]];
    cluster.reconcile();
    expect(cluster.reconciler.published).toEqual([[0, 1]]);
    cluster.workers[2]!.work();
    cluster.reconcile();
    expect(cluster.reconciler.published).toEqual([[0, 2]]);
  });

  test('a copy that was told to go is not taken for served before the worker has loaded it again', () => {
    const cluster = new ModelCluster(1, [1, 1]);
    cluster.target = [[0, 1]];
    cluster.settle();
    cluster.target = [[0]];
    cluster.reconcile();
    cluster.routers.fill(cluster.reconciler.epoch);
    cluster.reconcile();
    cluster.target = [[0, 1]];
    // Its last report still names the expert.
    expect(cluster.workers[1]!.has(0)).toBe(true);
    cluster.reconcile();
    expect(cluster.reconciler.published).toEqual([[0]]);
    cluster.settle();
    expect(cluster.reconciler.published).toEqual([[0, 1]]);
  });
});
