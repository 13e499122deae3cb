import { invalidArgument } from '../common/errors.js';
import type { LoadLimits } from './loading.js';

/** Copies of experts: [layers, experts] → the workers that hold one, as indices, ascending. */
export type Copies = readonly (readonly (readonly number[])[])[];

export interface PlanWorker {
  name: string;
  /** Workers of one host fail together, and rows between them stay there. */
  host: string;
  /** What its experts may take. */
  memoryBytes: number;
  /** Rows that it computes a second. */
  rowsPerSecond: number;
  /** Bytes of experts that it loads a second. */
  loadBytesPerSecond: number;
  /** It gets no copy that it does not have. */
  closed?: boolean;
}

export interface PlanLayer {
  /** Its number in the model. */
  layer: number;
  /** Of one expert. */
  expertBytes: number;
  /** [experts] Rows a second. */
  loads: Float64Array;
  /** [tokens, topK] The experts of a sample of tokens; null: none is known. */
  choices: Uint32Array | null;
}

export interface PlanInput {
  workers: readonly PlanWorker[];
  layers: readonly PlanLayer[];
  /** Experts of a token. */
  topK: number;
  /** Empty lists for experts that nobody holds. */
  present: Copies;
  /** Copies of an expert that there are at least, whatever its load. */
  copiesMin: number;
  /** Copies of a layer beyond those; null: as many as memory holds. */
  replicaSlots: number | null;
  limits: LoadLimits;
  /** For how long the load is taken to stay as it is. */
  horizonSeconds: number;
  /** What the rows of one token to and from one worker take on the link between two hosts, in seconds; 0: it does not count. */
  crossingSeconds: number;
}

const atLeast = (bound: number) => (value: number) => Number.isFinite(value) && value >= bound;
const positive = (value: number) => Number.isFinite(value) && value > 0;

/** Throws INVALID_ARGUMENT that names the field, the value and what is allowed. */
export function checkInput(input: PlanInput): void {
  const { workers, layers, topK, present, copiesMin, replicaSlots, limits } = input;
  const { horizonSeconds, crossingSeconds } = input;
  const check = (field: string, value: number, isAllowed: (value: number) => boolean, allowed: string) => {
    if (!isAllowed(value)) throw invalidArgument(field, value, allowed);
  };
  check('workers', workers.length, atLeast(1), 'at least 1');
  check('layers', layers.length, atLeast(1), 'at least 1');
  check('topK', topK, atLeast(1), 'at least 1');
  check('copiesMin', copiesMin, (value) => Number.isInteger(value) && value >= 1, 'an integer of at least 1');
  check('replicaSlots', replicaSlots ?? 0, atLeast(0), 'at least 0');
  check('loads of limits', limits.loads, atLeast(1), 'at least 1');
  check('bytesPerSecond of limits', limits.bytesPerSecond, positive, 'above 0');
  check('horizonSeconds', horizonSeconds, positive, 'above 0');
  check('crossingSeconds', crossingSeconds, atLeast(0), 'at least 0');
  for (const { name, memoryBytes, rowsPerSecond, loadBytesPerSecond } of workers) {
    check(`memoryBytes of worker ${name}`, memoryBytes, atLeast(0), 'at least 0');
    check(`rowsPerSecond of worker ${name}`, rowsPerSecond, positive, 'above 0');
    check(`loadBytesPerSecond of worker ${name}`, loadBytesPerSecond, positive, 'above 0');
  }
  check('layers of present', present.length, (value) => value === layers.length, `${layers.length}`);
  for (const [index, { layer, expertBytes, loads, choices }] of layers.entries()) {
    check(`expertBytes of layer ${layer}`, expertBytes, positive, 'above 0');
    for (const load of loads) check(`a load of layer ${layer}`, load, atLeast(0), 'at least 0');
    const choiceAllowed = (expert: number) => expert < loads.length;
    for (const expert of choices ?? [])
      check(`an expert of the choices of layer ${layer}`, expert, choiceAllowed, `below ${loads.length}`);
    const held = present[index]!;
    const lists = (value: number) => value === loads.length;
    check(`experts of layer ${layer} of present`, held.length, lists, `${loads.length}`);
    for (const [expert, holders] of held.entries()) checkHolders(layer, expert, holders, workers.length);
  }
}

function checkHolders(layer: number, expert: number, holders: readonly number[], workers: number): void {
  let last = -1;
  for (const worker of holders) {
    if (!Number.isInteger(worker) || worker <= last || worker >= workers) {
      const field = `workers of layer ${layer} expert ${expert}`;
      throw invalidArgument(field, holders.join(', '), `ascending indices below ${workers}`);
    }
    last = worker;
  }
}
