import type { SwitchyardError } from '../common/errors.js';
import type { ControlService } from '../coordinator/control-service.js';
import type { EventLog } from './event-log.js';
import { LeaseStore } from './lease-store.js';
import { modelSpec } from './model.js';
import { Network } from './network.js';
import { CoordinatorNode, RouterNode, type SimulatedNode, type Surroundings, WorkerNode } from './nodes.js';
import { SimulatedProcess } from './process.js';
import type { SeededRandom } from './random.js';
import type { RouterScenario, Scenario, WorkerScenario } from './scenario.js';
import type { VirtualTime } from './virtual-time.js';

const mebibyte = 1024 * 1024;
const startedAnewMs = 500;
const coordinatorAddress = (host: string, index: number) => `${host}:${1_000 + index}`;

/** The place of a process, which may be empty: started, killed, and started anew under the same name. */
export interface Slot<Node extends SimulatedNode> {
  readonly name: string;
  readonly host: string;
  node: Node | null;
  /** Counts its processes. */
  starts: number;
}

/** A coordinator while it leads. */
export interface Leader {
  process: SimulatedProcess;
  control: ControlService;
}

/** Who judges what happens between two looks. */
export interface Judge {
  /** A coordinator tells a new view. */
  viewed: (control: ControlService) => void;
  /** A worker that was asked to end has ended. */
  departed: (node: WorkerNode, askedMs: number) => void;
  /** A coordinator refuses what a member says. */
  refused: (name: string, why: string) => void;
}

/** All processes of a simulated cluster, and what connects them. */
export class SimulatedCluster {
  readonly network: Network;
  readonly coordinators: Slot<CoordinatorNode>[];
  readonly routers: Slot<RouterNode>[];
  readonly workers: Slot<WorkerNode>[];
  /** Names of those that never come back. */
  readonly gone = new Set<string>();
  /** Who hears of what happens; given before anything does. */
  judge: Judge = { viewed: () => {}, departed: () => {}, refused: () => {} };
  /** All that there were, by name. */
  private readonly processes = new Map<string, SimulatedProcess>();
  private readonly asked = new WeakSet<SimulatedNode>();
  private readonly surroundings: Surroundings;

  constructor(
    readonly scenario: Scenario,
    readonly time: VirtualTime,
    readonly log: EventLog,
    private readonly random: SeededRandom,
  ) {
    const { rates, coordinatorHosts, leaseHost } = scenario;
    this.network = new Network({ time, random, rates, log });
    this.surroundings = {
      scenario,
      spec: modelSpec(scenario.shape),
      network: this.network,
      log,
      coordinators: coordinatorHosts.map(coordinatorAddress),
      leases: coordinatorHosts.length === 1 ? null : new LeaseStore(this.network, leaseHost),
    };
    const slot = ({ name, host }: { name: string; host: string }) => ({ name, host, node: null, starts: 0 });
    this.coordinators = coordinatorHosts.map((host, index) => slot({ name: `coordinator-${index}`, host }));
    this.routers = scenario.routers.map(slot);
    this.workers = scenario.workers.map(slot);
  }

  /** A process by its name and number. */
  processOf(name: string, number: number): SimulatedProcess | undefined {
    return this.processes.get(number === 1 ? name : `${name}#${number}`);
  }

  /** The coordinators that lead, each with what it leads by; there is one at most. */
  get leaders(): Leader[] {
    return this.coordinators.flatMap(({ node }) => {
      const control = node?.control ?? null;
      return control === null ? [] : [{ process: node!.process, control }];
    });
  }

  get slots(): Slot<SimulatedNode>[] {
    return [...this.coordinators, ...this.routers, ...this.workers];
  }

  /** Starts the process of an empty slot. */
  start(slot: Slot<SimulatedNode>): void {
    if (slot.node !== null) return;
    slot.starts += 1;
    this.log.add(slot.name, `starts, number ${slot.starts}`);
    const worker = this.scenario.workers.find(({ name }) => name === slot.name);
    const router = this.scenario.routers.find(({ name }) => name === slot.name);
    const slabBytes = worker?.slabBytes ?? 64 * mebibyte;
    const process = this.process(slot, slabBytes);
    slot.node = this.createNode(slot, process, worker, router);
  }

  /** As SIGKILL. */
  kill(slot: Slot<SimulatedNode>): void {
    if (slot.node === null) return;
    this.log.add(slot.name, 'dies');
    slot.node.process.kill();
    slot.node = null;
  }

  /** Whether its process was asked to end: one that stands still will do so when it goes on. */
  isEnding({ node }: Slot<SimulatedNode>): boolean {
    return node !== null && this.asked.has(node);
  }

  /** As SIGTERM. */
  drain(slot: Slot<SimulatedNode>): void {
    const { node } = slot;
    if (node === null || this.isEnding(slot)) return;
    this.log.add(slot.name, 'is asked to end');
    this.asked.add(node);
    const askedMs = this.time.nowMs;
    node.process.deliver(() => void node.stop().then(() => this.ended(slot, node, askedMs)));
  }

  private ended(slot: Slot<SimulatedNode>, node: SimulatedNode, askedMs: number): void {
    if (slot.node !== node) return;
    if (node instanceof WorkerNode) this.judge.departed(node, askedMs);
    this.log.add(slot.name, 'ends');
    node.process.kill();
    slot.node = null;
  }

  private createNode(
    slot: Slot<SimulatedNode>,
    process: SimulatedProcess,
    worker: WorkerScenario | undefined,
    router: RouterScenario | undefined,
  ): SimulatedNode {
    const onFailed = (error: SwitchyardError) => this.failed(slot, process, error);
    if (router !== undefined) return new RouterNode(process, router, this.surroundings, onFailed);
    if (worker === undefined) {
      const index = this.coordinators.findIndex(({ name }) => name === slot.name);
      const address = coordinatorAddress(slot.host, index);
      return new CoordinatorNode(process, address, this.surroundings, (control) =>
        this.judge.viewed(control),
      );
    }
    const port = 100 * slot.starts + this.scenario.workers.indexOf(worker) + 10;
    return new WorkerNode(process, worker, this.surroundings, port, onFailed);
  }

  /** A process that cannot be a member any more ends, and whoever watches over it starts it anew. */
  private failed(
    slot: Slot<SimulatedNode>,
    process: SimulatedProcess,
    { code, message }: SwitchyardError,
  ): void {
    if (slot.node?.process !== process) return;
    this.log.add(slot.name, `cannot be a member any more: ${message}`);
    if (code === 'INVALID_ARGUMENT') this.judge.refused(slot.name, message);
    this.kill(slot);
    this.time.after(startedAnewMs, () => {
      if (!this.gone.has(slot.name)) this.start(slot);
    });
  }

  private process({ name, host, starts }: Slot<SimulatedNode>, slabBytes: number): SimulatedProcess {
    const { time, random, scenario } = this;
    const { operationMs, operationRowMs } = scenario.rates;
    const own = random.fork();
    const process = new SimulatedProcess({
      time,
      name,
      number: starts,
      host,
      skew: scenario.hosts.get(host)!,
      random: own,
      slabBytes,
      costs: { operation: (rows) => own.exponential(operationMs) + rows * operationRowMs },
    });
    this.processes.set(process.name, process);
    return process;
  }
}
