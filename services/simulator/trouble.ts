import type { SimulatedCluster, Slot } from './cluster.js';
import { type FaultTarget, pickFault } from './faults.js';
import type { SimulatedNode } from './nodes.js';
import type { SeededRandom } from './random.js';

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
    else if (slot.node.draining) this.cluster.time.after(500, () => this.startAgain(slot));
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
