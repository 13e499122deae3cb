import type { ModelShape } from './batch.js';
import { drawFaults, type FaultPlan } from './faults.js';
import type { SeededRandom } from './random.js';
import { type ClockSkew, type DeviceRates, drawClock, drawDevice, drawRates, type Rates } from './rates.js';

export interface WorkerScenario {
  name: string;
  host: string;
  device: DeviceRates;
  /** How many experts its memory holds. */
  expertsMax: number;
  slabBytes: number;
  /** What it has to end in order. */
  drainMs: number;
}

export interface RouterScenario {
  name: string;
  host: string;
  budgetBytes: number;
}

/** The coordinator's settings of the same names. */
export interface PlacementScenario {
  workers: number;
  copies: number;
  replicaSlots: number | null;
  rebalanceSeconds: number;
  rebalanceLoads: number;
  rebalanceBytesPerSecond: number;
}

/** All that a seed decides before anything happens. */
export interface Scenario {
  shape: ModelShape;
  rates: Rates;
  hosts: ReadonlyMap<string, ClockSkew>;
  /** The hosts of the coordinators; of several one leads, by a lease. */
  coordinatorHosts: string[];
  leaseHost: string;
  leaderLeaseMs: number;
  workers: WorkerScenario[];
  routers: RouterScenario[];
  clients: number;
  /** Between two batches of a client, on average. */
  thinkMs: number;
  leaseMs: number;
  heartbeatMs: number;
  readyWaitMs: number;
  placement: PlacementScenario;
  feedback: boolean;
  faults: FaultPlan;
  /** How long anything may go wrong. */
  safetyMs: number;
  /** The worker whose address leads nowhere, as of one behind a wall: it joins, loads, and no router ever reaches it. Null: there is none. */
  unreachable: string | null;
}

const mebibyte = 1024 * 1024;

export function drawScenario(random: SeededRandom): Scenario {
  const experts = random.integer(3, 10);
  const shape = { layers: random.integer(1, 3), experts, topK: random.integer(1, Math.min(3, experts)) };
  const workerCount = random.integer(2, 6);
  const hostCount = random.integer(2, workerCount + 2);
  const hosts = new Map(
    Array.from({ length: hostCount }, (_, index) => [`host-${index}`, drawClock(random)]),
  );
  const names = [...hosts.keys()];
  const copies = random.chance(0.6) ? 2 : 1;
  const clients = random.integer(1, 4);
  const safetyMs = random.integer(8_000, 30_000);
  const leaseMs = random.pick([600, 1_000, 3_000]);
  const scenario = {
    shape,
    rates: drawRates(random),
    hosts,
    coordinatorHosts: Array.from({ length: random.chance(0.6) ? 1 : random.integer(2, 3) }, () =>
      random.pick(names),
    ),
    leaseHost: random.pick(names),
    leaderLeaseMs: random.pick([1_000, 3_000]),
    workers: drawWorkers(random, names, workerCount, copies * shape.layers * shape.experts),
    routers: Array.from({ length: random.integer(1, 3) }, (_, index) => ({
      name: `router-${index}`,
      host: random.pick(names),
      budgetBytes: random.pick([4, 16]) * mebibyte,
    })),
    clients,
    thinkMs: (safetyMs * clients) / random.integer(20, 120),
    leaseMs,
    heartbeatMs: Math.floor(leaseMs / 3),
    readyWaitMs: random.pick([5_000, 30_000]),
    placement: {
      workers: random.integer(1, workerCount),
      copies,
      replicaSlots: random.pick([null, 0, 2]),
      rebalanceSeconds: random.pick([0, 0.5, 5, 60]),
      rebalanceLoads: random.pick([1, 8]),
      rebalanceBytesPerSecond: Math.round(random.magnitude(5_000, 100_000_000)),
    },
    feedback: random.chance(0.5),
    faults: drawFaults(random),
    safetyMs,
  };
  return { ...scenario, unreachable: drawUnreachable(random, scenario) };
}

/** The others must have memory for every expert. */
function drawUnreachable(
  random: SeededRandom,
  { workers, shape }: Pick<Scenario, 'workers' | 'shape'>,
): string | null {
  if (!random.chance(0.2)) return null;
  const { name } = random.pick(workers);
  const others = workers.filter((worker) => worker.name !== name);
  const room = others.reduce((sum, { expertsMax }) => sum + expertsMax, 0);
  return room < shape.layers * shape.experts ? null : name;
}

/** Their memory holds all copies with one worker missing, as a rule; where it does not, experts may be without a place for a while. */
function drawWorkers(random: SeededRandom, hosts: string[], count: number, copies: number): WorkerScenario[] {
  const share = Math.ceil(copies / Math.max(1, count - 1));
  const roomy = random.chance(0.8);
  return Array.from({ length: count }, (_, index) => ({
    name: `worker-${index}`,
    host: random.pick(hosts),
    device: drawDevice(random),
    expertsMax: roomy ? share * random.integer(1, 3) + 1 : share,
    slabBytes: random.pick([2, 8, 64]) * mebibyte,
    drainMs: random.pick([500, 2_000, 10_000]),
  }));
}
