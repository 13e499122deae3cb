import type { GroupTargets, RowGroup } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';

/** What the gate chose. */
export interface Choices {
  /** [rows, topK] */
  experts: Uint32Array;
  weights: Float32Array;
  topK: number;
  /** Whether groups carry weights. */
  weighted: boolean;
}

/** A group, and the slots (token * topK + position) of its row indices. */
export interface GroupedSlots {
  group: RowGroup;
  slots: Uint32Array;
}

/**
 * Groups slots, which ascend, by a worker with a copy of their expert: by worker and token, those without a copy last. Rows of an
 * expert with several copies go to the worker that would be done first.
 */
export function groupSlots(choices: Choices, targets: GroupTargets, slots: Iterable<number>): GroupedSlots[] {
  const byWorker = Array.from({ length: targets.workers + 1 }, (): number[] => []);
  const { secondsQueued, secondsPerRow } = targets.pace ?? {};
  const busyUntil = Array.from({ length: targets.workers }, (_, worker) => secondsQueued?.[worker] ?? 0);
  for (const slot of slots) {
    const worker = workerOf(choices.experts[slot]!, targets, busyUntil);
    byWorker[worker]!.push(slot);
    if (worker < targets.workers) busyUntil[worker]! += secondsPerRow?.[worker] ?? 1;
  }
  return byWorker.flatMap((own, worker) =>
    cut(own, worker, choices, targets).map((part) => makeGroup(part, worker, choices, targets)),
  );
}

/** `targets.workers`: nobody has it. */
function workerOf(expert: number, { copies, workers }: GroupTargets, busyUntil: readonly number[]): number {
  let best = workers;
  for (let copy = copies.offsets[expert]!; copy < copies.offsets[expert + 1]!; copy += 1) {
    const worker = copies.workers[copy]!;
    if (best === workers || busyUntil[worker]! < busyUntil[best]!) best = worker;
  }
  return best;
}

/** Cuts a worker's slots, between tokens, where a group would be above a limit. */
function cut(
  slots: number[],
  worker: number,
  { topK }: Choices,
  { workers, limits }: GroupTargets,
): number[][] {
  if (slots.length === 0) return [];
  if (limits === null || worker === workers) return [slots];
  const { rowsMax, entriesMax, costMax, rowCost, entryCost } = limits;
  const parts: number[][] = [];
  let [part, rows]: [number[], number] = [[], 0];
  for (let next = 0; next < slots.length; ) {
    let end = next + 1;
    while (end < slots.length && tokenOf(slots[end]!, topK) === tokenOf(slots[next]!, topK)) end += 1;
    const entries = part.length + end - next;
    const within =
      rows + 1 <= rowsMax[worker]! &&
      entries <= entriesMax[worker]! &&
      (rows + 1) * rowCost + entries * entryCost <= costMax[worker]!;
    if (within) {
      part.push(...slots.slice(next, end));
      rows += 1;
      next = end;
      continue;
    }
    if (rows === 0)
      throw new SwitchyardError('INVALID_ARGUMENT', `limits of worker ${worker} are below one token`);
    parts.push(part);
    [part, rows] = [[], 0];
  }
  parts.push(part);
  return parts;
}

function makeGroup(
  slots: number[],
  worker: number,
  choices: Choices,
  { workers }: GroupTargets,
): GroupedSlots {
  const { experts, weights, topK, weighted } = choices;
  const tokens = [...new Set(slots.map((slot) => tokenOf(slot, topK)))];
  const rowOf = new Map(tokens.map((token, row) => [token, row]));
  const ordered = slots.toSorted((x, y) => experts[x]! - experts[y]! || x - y);
  const segments: number[] = [];
  for (const slot of ordered) {
    if (segments.at(-2) === experts[slot]) segments[segments.length - 1]! += 1;
    else segments.push(experts[slot]!, 1);
  }
  const group = {
    worker: worker === workers ? null : worker,
    rowCount: tokens.length,
    segments: Uint32Array.from(segments),
    rowIndices: Uint32Array.from(ordered, (slot) => rowOf.get(tokenOf(slot, topK))!),
    weights: weighted ? Float32Array.from(ordered, (slot) => weights[slot]!) : null,
    tokens: Uint32Array.from(tokens),
  };
  return { group, slots: Uint32Array.from(ordered) };
}

function tokenOf(slot: number, topK: number): number {
  return Math.floor(slot / topK);
}
