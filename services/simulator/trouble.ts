import { type ErrorCode, SwitchyardError } from '../common/errors.js';
import type { ControlService } from '../coordinator/control-service.js';
import type { Mark } from '../coordinator/plans.js';
import type { SimulatedCluster, Slot } from './cluster.js';
import { type FaultTarget, pickFault } from './faults.js';
import type { SimulatedNode } from './nodes.js';
import type { SeededRandom } from './random.js';

const jumpMsMax = 3_600_000;
/** What an operator may hear. */
const refusals = new Set<ErrorCode>(['NOT_READY', 'INVALID_ARGUMENT', 'RESOURCE_EXHAUSTED']);

/** Does faults to a cluster, one after the other and several at once, until `heal`. */
export class Trouble implements FaultTarget {
  private over = false;

  constructor(
    private readonly cluster: SimulatedCluster,
    private readonly random: SeededRandom,
  ) {}

  start(): void {
    this.next();
  }

  /** From now on nothing goes wrong any more, and what did ends, but for what is dead. */
  heal(): void {
    this.over = true;
    this.cluster.log.add('faults', 'are over');
    this.cluster.network.heal();
    for (const { node } of this.cluster.slots) node?.process.resume();
    for (const { node } of this.cluster.workers) node?.process.rows.starve(0);
    for (const { name } of this.cluster.workers) this.say(name, null);
  }

  crash(): () => void {
    const slot = this.pick();
    this.cluster.kill(slot);
    return () => this.cluster.start(slot);
  }

  drain(): () => void {
    const slot = this.pick();
    this.cluster.drain(slot);
    return () => this.startAgain(slot);
  }

  stop(): () => void {
    const { name, node } = this.pick();
    this.cluster.log.add(name, 'stands still');
    node?.process.stop();
    this.cluster.network.watch();
    return () => {
      this.cluster.log.add(name, 'goes on');
      node?.process.resume();
    };
  }

  cut(): () => void {
    const [a, b] = this.random.shuffled([...this.cluster.scenario.hosts.keys()]);
    return this.cutPaths([[a!, b!]]);
  }

  isolate(): () => void {
    const [alone, ...others] = this.random.shuffled([...this.cluster.scenario.hosts.keys()]);
    return this.cutPaths(others.map((other): [string, string] => [alone!, other]));
  }

  break(): () => void {
    this.cluster.network.breakOne();
    return () => {};
  }

  /** A worker's slabs are full. */
  starve(): () => void {
    const { name, node } = this.random.pick(this.cluster.workers);
    this.cluster.log.add(name, 'has no memory left for rows');
    node?.process.rows.starve(Number.POSITIVE_INFINITY);
    return () => node?.process.rows.starve(0);
  }

  /** An operator drains or cordons a worker. */
  mark(): () => void {
    const { name } = this.random.pick(this.cluster.workers);
    this.say(name, this.random.pick(['DRAINED', 'CORDONED'] as const));
    return () => this.say(name, null);
  }

  /** An operator asks for a plan for the present load. */
  rebalance(): () => void {
    this.command('rebalance', ({ cluster }, nowMs) => cluster.rebalance(nowMs));
    return () => {};
  }

  jump(): () => void {
    const { scenario, log } = this.cluster;
    const [host, skew] = this.random.pick([...scenario.hosts]);
    const ms = Math.round(this.random.between(-jumpMsMax, jumpMsMax));
    skew.wallMs += ms;
    log.add(host, `sets its clock by ${ms} ms`);
    return () => {};
  }

  private say(worker: string, mark: Mark | null): void {
    this.command(`${worker} is ${mark ?? 'as any other'}`, async ({ cluster }, nowMs) =>
      cluster.mark(worker, mark, nowMs),
    );
  }

  /** Whoever cannot be asked, or refuses, does nothing. */
  private command(what: string, run: (control: ControlService, nowMs: number) => Promise<unknown>): void {
    const [leader] = this.cluster.leaders;
    if (leader === undefined) return;
    const { process, control } = leader;
    process.deliver(() => {
      this.cluster.log.add('operator', what);
      run(control, process.runtime.clock.now()).catch((error) => {
        if (!(error instanceof SwitchyardError) || !refusals.has(error.code)) throw error;
        this.cluster.log.add('operator', `is refused: ${error.message}`);
      });
    });
  }

  private next(): void {
    const { time, scenario } = this.cluster;
    time.after(this.random.exponential(scenario.faults.everyMs), () => {
      if (this.over) return;
      const kind = pickFault(this.random, scenario.faults.weights);
      if (kind === null) return;
      const end = this[kind]();
      time.after(this.random.magnitude(10, scenario.faults.lastsMs + 10), () => {
        if (!this.over) end();
      });
      this.next();
    });
  }

  /** Workers more often than the others: there are more of them. */
  private pick(): Slot<SimulatedNode> {
    return this.random.pick(this.cluster.slots);
  }

  private startAgain(slot: Slot<SimulatedNode>): void {
    if (slot.node === null) this.cluster.start(slot);
    else if (this.cluster.isEnding(slot)) this.cluster.time.after(500, () => this.startAgain(slot));
  }

  private cutPaths(paths: [string, string][]): () => void {
    const { network, log } = this.cluster;
    for (const [a, b] of paths) network.cut(a, b);
    log.add('network', `cuts ${paths.map((path) => path.join(' – ')).join(', ')}`);
    return () => {
      for (const [a, b] of paths) network.healPath(a, b);
      log.add('network', `heals ${paths.map((path) => path.join(' – ')).join(', ')}`);
    };
  }
}
