import { Invariants, leftBehind } from './checks.js';
import { SimulatedCluster } from './cluster.js';
import { EventLog } from './event-log.js';
import { SeededRandom } from './random.js';
import { drawScenario } from './scenario.js';
import { Trouble } from './trouble.js';
import { VirtualTime } from './virtual-time.js';
import { Workload } from './workload.js';

export interface SimulationResult {
  seed: number;
  /** What must never happen, and did; null: nothing. */
  violation: string | null;
  events: number;
  /** Batches that were answered whole. */
  completed: number;
  /** Of all that happened. */
  hash: string;
  /** The last of what happened, in words. */
  tail: string[];
}

export interface SimulationOptions {
  /** Gets what happens, line by line. */
  onLine?: (line: string) => void;
  /** Nothing goes wrong. */
  calm?: boolean;
}

const probeMs = 50;
/** Until a core without faults must have done all that it was asked. */
const livenessMsMax = 120_000;
/** What is under way when the last batch has ended, ends within this. */
const settleMs = 10_000;
const tailLines = 60;

/** Runs the cluster of a seed: first whatever may go wrong does, then what is left of it must do its work. */
export async function simulate(seed: number, options: SimulationOptions = {}): Promise<SimulationResult> {
  const simulation = new Simulation(seed, options);
  const violation = await simulation.run();
  return simulation.result(violation);
}

class Simulation {
  private readonly time = new VirtualTime();
  private readonly log: EventLog;
  private readonly random: SeededRandom;
  private readonly cluster: SimulatedCluster;
  private readonly workload: Workload;
  private readonly trouble: Trouble;
  private readonly invariants: Invariants;
  private violation: string | null = null;

  constructor(
    private readonly seed: number,
    private readonly options: SimulationOptions,
  ) {
    this.log = new EventLog(() => this.time.nowMs, options.onLine);
    this.random = new SeededRandom(seed);
    const scenario = drawScenario(this.random.fork());
    this.cluster = new SimulatedCluster(scenario, this.time, this.log, this.random.fork());
    const violated = (what: string) => this.violated(what);
    this.workload = new Workload(this.cluster, this.random.fork(), violated);
    this.trouble = new Trouble(this.cluster, this.random.fork());
    this.invariants = new Invariants(this.cluster, violated);
  }

  async run(): Promise<string | null> {
    const rejected = (reason: unknown) =>
      this.violated(
        `a promise was rejected that nobody waits for: ${reason instanceof Error ? reason.stack : reason}`,
      );
    process.on('unhandledRejection', rejected);
    try {
      await this.safety();
      if (this.violation === null) await this.liveness();
      await this.settle();
    } catch (error) {
      this.violated(`the code threw: ${(error as Error).stack}`);
    } finally {
      process.off('unhandledRejection', rejected);
    }
    return this.violation;
  }

  result(violation: string | null): SimulationResult {
    return {
      seed: this.seed,
      violation,
      events: this.time.events,
      completed: this.workload.completed,
      hash: this.log.hash,
      tail: this.log.last(tailLines),
    };
  }

  /** Everything starts, clients ask, and faults happen. Nothing must go wrong for good. */
  private async safety(): Promise<void> {
    const { cluster, random, time } = this;
    for (const slot of random.shuffled(cluster.slots))
      time.after(random.between(0, 500), () => cluster.start(slot));
    this.probe();
    this.workload.start();
    if (!this.options.calm) this.trouble.start();
    await this.until(cluster.scenario.safetyMs, () => false);
  }

  /** A random core that could do its work, with all that holds experts of its own, has no more faults, and must do it. */
  private async liveness(): Promise<void> {
    const { cluster, workload, random } = this;
    this.trouble.heal();
    workload.stop();
    this.loseWorkers();
    for (const slot of cluster.slots) {
      if (cluster.isEnding(slot)) cluster.kill(slot);
      if (!cluster.gone.has(slot.name)) cluster.start(slot);
    }
    for (const slot of cluster.routers) if (random.chance(0.7)) workload.ask(slot);
    const done = await this.until(livenessMsMax, () => workload.openCount === 0);
    if (!done && this.violation === null) {
      const [leader] = cluster.leaders;
      const { ready, reason } = leader?.control.readiness() ?? {
        ready: false,
        reason: 'no coordinator leads',
      };
      const why = ready ? 'the cluster is ready' : reason;
      this.violated(`not done ${livenessMsMax} ms after the last fault: ${workload.describeOpen()}; ${why}`);
    }
  }

  /** Some workers never come back, as long as the others have memory for all experts, and are as many as a first start waits for. */
  private loseWorkers(): void {
    const { cluster, random } = this;
    const { shape, placement, unreachable } = cluster.scenario;
    const workers = cluster.scenario.workers.filter(({ name }) => name !== unreachable);
    const needed = shape.layers * shape.experts;
    let room = workers.reduce((sum, { expertsMax }) => sum + expertsMax, 0);
    let left = cluster.scenario.workers.length;
    for (const { name, expertsMax } of random.shuffled(workers)) {
      if (left === placement.workers) return;
      if (room - expertsMax < needed || random.chance(0.5)) continue;
      room -= expertsMax;
      left -= 1;
      cluster.gone.add(name);
      cluster.kill(cluster.workers.find((slot) => slot.name === name)!);
    }
  }

  private async settle(): Promise<void> {
    if (this.violation !== null) return;
    let left: string | null = null;
    await this.until(settleMs, () => {
      left = leftBehind(this.cluster);
      return left === null;
    });
    if (left !== null) this.violated(`left behind when nothing was under way: ${left}`);
  }

  private probe(): void {
    this.time.after(probeMs, () => {
      this.invariants.check();
      this.probe();
    });
  }

  private until(ms: number, done: () => boolean): Promise<boolean> {
    return this.time.run(this.time.nowMs + ms, () => this.violation !== null || done());
  }

  private violated(what: string): void {
    this.log.add('CHECK', what);
    this.violation ??= what;
  }
}
