import { decimal, humanCount, text } from '../common/config.js';
import { SwitchyardError } from '../common/errors.js';
import type { ClusterView } from '../common/generated/switchyard/v1/ClusterView.js';
import type { WorkerMark } from '../common/generated/switchyard/v1/WorkerMark.js';
import type { FileTopology } from '../coordinator/topology.js';
import { inStoredBytes, isCuda } from '../model/device-bytes.js';
import type { PlanInput, PlanWorker } from '../placement/input.js';
import { exactly, likeFactor, usualRates } from '../placement/rates.js';
import { plannedRates, type Speed } from '../placement/speeds.js';
import { count } from './format.js';
import type { Recording } from './recording.js';

/** What a plan is made with. */
export const planFields = {
  recording: text().nullable().default(null),
  topology: text().nullable().default(null),
  copies: humanCount(1, 64).nullable().default(null),
  replicaSlots: humanCount(0, 1_048_576).nullable().default(null),
  horizon: decimal(1, 31_536_000).default(3_600),
};
/** Coordinators have keys of these names, of what they plan by themselves. */
export const planNamesInEnvironment = {
  topology: 'planTopology',
  copies: 'planCopies',
  replicaSlots: 'planReplicaSlots',
} as const;
export const planHelp = {
  recording: ['file', 'plan for this load, as forward --record wrote it, instead of asking the cluster'],
  topology: ['file', 'plan for the devices of this topology file instead of the workers that there are'],
  copies: ['n', "copies of each expert at least (default: the cluster's, and 1 for plan with a recording)"],
  replicaSlots: ['n', 'copies of a layer beyond those (default: as many as memory holds)'],
  horizon: ['seconds', 'how long the load is taken to stay, which decides what a change may cost'],
} as const;

export interface PlanOptions {
  /** Null: those of the cluster. */
  copies: number | null;
  replicaSlots: number | null;
  horizon: number;
}

type RecordedWorker = Recording['workers'][number];

/** Plans count experts by the bytes that are stored; these are those of the worker's device. */
export interface DeviceWorker extends PlanWorker {
  deviceMemoryBytes: number;
  /** What a stored byte takes there. */
  deviceBytesPerByte: number;
}

export interface DeviceInput extends PlanInput {
  workers: readonly DeviceWorker[];
}

/** What a cluster says of its plans. */
export interface ClusterRules {
  /** Of workers, by name: what an operator has said of them. */
  marks: ReadonlyMap<string, WorkerMark>;
  /** Copies of each expert at least. */
  copies: number;
}

const noRules: ClusterRules = { marks: new Map(), copies: 1 };

export const rulesOf = (view: ClusterView | null): ClusterRules => ({
  marks: new Map(view?.nodes.filter(({ role }) => role === 'WORKER').map(({ name, mark }) => [name, mark])),
  copies: view?.copies || 1,
});

/**
 * What the planner is given for a recorded load; with a topology, on the devices that it lists. Workers that are drained are left out, cordoned ones get nothing
 * new. `measured`: the workers whose speeds are known. Throws NOT_READY for a recording without rows, and where all workers are drained.
 */
export function planInput(
  recording: Recording,
  topology: FileTopology | null,
  { copies, replicaSlots, horizon }: PlanOptions,
  { marks, copies: copiesOfCluster } = noRules,
  measured: Recording['workers'] = recording.workers,
): DeviceInput {
  const { layers, seconds, topK } = recording;
  const rows = layers.flatMap((layer) => layer.rows).reduce((sum, one) => sum + one, 0);
  if (rows === 0) {
    const text = `no rows were routed within ${seconds.toFixed(1)} s, so there is no load to plan for: send batches meanwhile, or give a recording of one (forward --record)`;
    throw new SwitchyardError('NOT_READY', text);
  }
  const { workers, indexOf } = withoutDrained(onTopology(recording.workers, topology), marks);
  const room = ({ device, ...told }: RecordedWorker) => {
    const { stored, held } = bytesOn(device, layers);
    return { ...told, ...inStoredBytes(told, stored, held), deviceBytesPerByte: held / stored };
  };
  const rates = ratesOf(measured.map(room));
  const ratesAt = ({ name, device }: RecordedWorker) =>
    rates[measured.findIndex((one) => one.name === name && one.device === device) + 1]!;
  return {
    workers: workers.map((worker): DeviceWorker => {
      const { name, host, memoryBytes, deviceBytesPerByte } = room(worker);
      return {
        name,
        host,
        memoryBytes,
        ...ratesAt(worker),
        deviceMemoryBytes: worker.memoryBytes,
        deviceBytesPerByte,
        closed: marks.get(name) === 'CORDONED',
      };
    }),
    layers: layers.map(({ layer, expertBytes, rows, choices }) => ({
      layer,
      expertBytes,
      loads: Float64Array.from(rows, (count) => count / seconds),
      choices: choices && Uint32Array.from(choices),
    })),
    topK,
    present: layers.map(({ workersOf }) =>
      workersOf.map((holders) =>
        holders
          .map((worker) => indexOf[worker]!)
          .filter((worker) => worker >= 0)
          .sort((a, b) => a - b),
      ),
    ),
    copiesMin: copies ?? Math.min(copiesOfCluster, workers.length),
    replicaSlots,
    limits: { loads: recording.rebalanceLoads, bytesPerSecond: recording.rebalanceBytesPerSecond },
    horizonSeconds: horizon,
    crossingSeconds: crossingSeconds(topology, recording.hidden),
  };
}

/** Said beside the copies that a plan loads; empty where all of them come for a gain. */
export const required = (copies: number, { copiesMin }: PlanInput) =>
  copies === 0 ? '' : ` (${count(copies)} since each expert has ${copiesMin} at least, whatever that gains)`;

/** Of an expert of the layer that grows most on the device: as it is stored, and as it is held there. */
function bytesOn(device: string, layers: Recording['layers']): { stored: number; held: number } {
  const all = layers.map(({ expertBytes, expertBytesOnCuda }) => ({
    stored: expertBytes,
    held: (isCuda(device) && expertBytesOnCuda) || expertBytes,
  }));
  return all.reduce((most, one) => (one.held / one.stored > most.held / most.stored ? one : most));
}

/** Of the slowest link that the topology lists: one row goes there and one comes back, in BF16. */
function crossingSeconds(topology: FileTopology | null, hidden: number): number {
  const slowest = Math.min(...(topology?.links ?? []).map(({ bandwidth }) => bandwidth));
  return (2 * 2 * hidden * 8) / slowest;
}

interface Workers {
  workers: readonly RecordedWorker[];
  /** By recorded worker; -1: it is gone. */
  indexOf: readonly number[];
}

function withoutDrained({ workers, indexOf }: Workers, marks: ClusterRules['marks']): Workers {
  const open = workers.filter(({ name }) => marks.get(name) !== 'DRAINED');
  if (open.length === 0) {
    const names = workers.map(({ name }) => name).join(', ');
    throw new SwitchyardError('NOT_READY', `there is no worker that may have copies; drained: ${names}`);
  }
  return {
    workers: open,
    indexOf: indexOf.map((index) => (index < 0 ? -1 : open.indexOf(workers[index]!))),
  };
}

/**
 * The workers on the devices of a topology: recorded ones keep theirs, those whose device it does not list are gone, and a device without one
 * gets a new worker with the least memory of the recorded ones.
 */
function onTopology(recorded: readonly RecordedWorker[], topology: FileTopology | null): Workers {
  if (topology === null) return { workers: recorded, indexOf: [...recorded.keys()] };
  const indexOf = recorded.map(() => -1);
  const memoryBytes = Math.min(...recorded.map((worker) => worker.memoryBytes));
  const workers: RecordedWorker[] = [];
  for (const { name: host, devices } of topology.hosts) {
    for (const [position, device] of devices.entries()) {
      const known = recorded.findIndex(
        (worker, index) => indexOf[index]! < 0 && worker.host === host && worker.device === device,
      );
      if (known >= 0) indexOf[known] = workers.length;
      const name = `${host}/${position}`;
      workers.push(recorded[known] ?? { name, host, device, memoryBytes, ...unmeasured });
    }
  }
  return { workers, indexOf };
}

/** Of a worker that is not recorded. */
const unmeasured = { rowsPerSecond: null, sizes: [], loadBytesPerSecond: null };

/** Of recorded workers, and before them of one that is not: it is as they are in the middle. */
function ratesOf(recorded: readonly (Speed & Pick<RecordedWorker, 'loadBytesPerSecond'>)[]) {
  for (const field of ['rowsPerSecond', 'loadBytesPerSecond'] as const) {
    if (recorded.some((worker) => worker[field] !== null)) continue;
    const text = `${field} is null for all ${recorded.length} workers; allowed: a number above 0 for one at least`;
    throw new SwitchyardError('NOT_READY', text, { field });
  }
  const all = [unmeasured, ...recorded];
  const computing = plannedRates(all, 0);
  const loading = usualRates(
    all.map(({ loadBytesPerSecond }) => exactly(loadBytesPerSecond)),
    0,
    likeFactor.loadBytesPerSecond,
  );
  return all.map((_, index) => ({ rowsPerSecond: computing[index]!, loadBytesPerSecond: loading[index]! }));
}
