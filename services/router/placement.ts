import type { ExpertCopies } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { LayerPlacement } from '../common/generated/switchyard/v1/LayerPlacement.js';
import type { Placement, PlacementInput } from '../common/generated/switchyard/v1/Placement.js';
import type { ExpertId } from '../common/layer-experts.js';

/**
 * For so long copies are held that are in no later placement: as a rule longer than a coordinator takes to bring experts away from a worker that no router reaches. Whoever does not reach
 * a worker that others reach must not hold them back for good.
 */
export const heldMsMax = 20_000;

/** A copy that is in no later placement. */
export interface HeldCopy extends ExpertId {
  worker: string;
  /** Since when it is in none. */
  sinceMs: number;
}

/** What decides which copies are held. */
export interface Holding {
  isReached: (worker: string) => boolean;
  nowMs: number;
  /** Copies that are held since then or before are given up; minus infinity: none. */
  untilMs: number;
}

/** The map of one epoch as grouping reads it. A chunk's layer uses one of these from start to end. */
export interface PlacementIndex {
  term: number;
  epoch: number;
  /** Copies in it that are of placements before: their holders keep them as long as they are told to. */
  held: readonly HeldCopy[];
  /** Names: an index into it is what the kernels call a worker. The idle ones are in it too. */
  workers: string[];
  /** By layer. */
  copies: ReadonlyMap<number, ExpertCopies>;
  /** Layer to [workers]: the number of its experts there. */
  expertsAt: ReadonlyMap<number, Uint32Array>;
  /** By layer: each expert that has no copy, and the name of the worker that had it last, if it was known. */
  lastAt: ReadonlyMap<number, ReadonlyMap<number, string>>;
}

/**
 * `known`: the placement before, of which layers stay that a message of the same term does not have. Throws INTERNAL for a placement whose
 * experts are on workers that it does not name.
 */
export function indexPlacement(
  { term, epoch }: { term: number; epoch: number },
  { workers, layers }: Placement,
  known: PlacementIndex | null,
): PlacementIndex {
  const before = known?.term === term ? known : null;
  const copies = new Map(before?.copies);
  const lastAt = new Map(before?.lastAt);
  for (const layer of layers) {
    const placed = indexLayer(layer, workers.length);
    copies.set(layer.layer, placed);
    lastAt.set(layer.layer, lastHolders(layer.layer, placed, known));
  }
  const expertsAt = countExperts(copies, workers.length);
  return { term, epoch, held: [], workers, copies, expertsAt, lastAt };
}

/**
 * `next`, a later placement than `before` of the same term, with copies of this one beside its own, for experts that are out of reach by `next` and within reach by `before`.
 * `next` itself if there are none. What has no copy in `next`, nobody has any more.
 */
export function withCopiesHeld(
  next: PlacementIndex,
  before: PlacementIndex,
  { isReached, nowMs, untilMs }: Holding,
): PlacementIndex {
  if (before.term !== next.term || before === next) return next;
  const reached = next.workers.map(isReached);
  const since = new Map(before.held.map((copy) => [heldKey(copy), copy.sinceMs]));
  const copies = new Map(next.copies);
  const held: HeldCopy[] = [];
  for (const [layer, placed] of next.copies) {
    const extra = extraHolders(placed, before.copies.get(layer), reached);
    for (const [expert, holders] of extra) {
      const kept = holders.flatMap((worker) => {
        const copy = { layer, expert, worker: next.workers[worker]! };
        const sinceMs = since.get(heldKey(copy)) ?? nowMs;
        if (sinceMs <= untilMs) return [];
        held.push({ ...copy, sinceMs });
        return [worker];
      });
      if (kept.length > 0) extra.set(expert, kept);
      else extra.delete(expert);
    }
    if (extra.size > 0) copies.set(layer, withExtra(placed, extra));
  }
  if (held.length === 0) return next;
  return { ...next, held, copies, expertsAt: countExperts(copies, next.workers.length) };
}

/** Expert to workers that have it by the placement before and are reached, where none is by the next. */
function extraHolders(
  next: ExpertCopies,
  before: ExpertCopies | undefined,
  reached: readonly boolean[],
): Map<number, number[]> {
  const extra = new Map<number, number[]>();
  for (let expert = 0; before !== undefined && expert + 1 < next.offsets.length; expert += 1) {
    const own = holdersOf(next, expert);
    if (own.length === 0 || own.some((worker) => reached[worker])) continue;
    const others = [...holdersOf(before, expert)].filter((worker) => reached[worker]);
    if (others.length > 0) extra.set(expert, others);
  }
  return extra;
}

function withExtra(placed: ExpertCopies, extra: ReadonlyMap<number, readonly number[]>): ExpertCopies {
  const offsets = new Uint32Array(placed.offsets.length);
  const workers: number[] = [];
  for (let expert = 0; expert + 1 < offsets.length; expert += 1) {
    const holders = [...holdersOf(placed, expert), ...(extra.get(expert) ?? [])];
    workers.push(...holders.sort((a, b) => a - b));
    offsets[expert + 1] = workers.length;
  }
  return { offsets, workers: Uint32Array.from(workers) };
}

/** Names a copy. */
export const heldKey = ({ layer, expert, worker }: Omit<HeldCopy, 'sinceMs'>) =>
  `${layer}/${expert}/${worker}`;

const holdersOf = ({ offsets, workers }: ExpertCopies, expert: number) =>
  workers.subarray(offsets[expert]!, offsets[expert + 1]!);

/** Layer to [workers]: the number of its experts there. */
function countExperts(
  copies: ReadonlyMap<number, ExpertCopies>,
  workers: number,
): ReadonlyMap<number, Uint32Array> {
  const expertsAt = new Map<number, Uint32Array>();
  for (const [layer, { workers: holders }] of copies) {
    const counts = new Uint32Array(workers);
    for (const worker of holders) counts[worker]! += 1;
    expertsAt.set(layer, counts);
  }
  return expertsAt;
}

/** Each expert that has no copy, and the worker that had it last. */
function lastHolders(layer: number, placed: ExpertCopies, known: PlacementIndex | null): Map<number, string> {
  const last = new Map<number, string>();
  const before = known?.copies.get(layer);
  for (let expert = 0; before !== undefined && expert + 1 < placed.offsets.length; expert += 1) {
    if (placed.offsets[expert] !== placed.offsets[expert + 1]) continue;
    const copy = before.offsets[expert]!;
    const hadOne = copy < before.offsets[expert + 1]!;
    const name = hadOne ? known!.workers[before.workers[copy]!] : known!.lastAt.get(layer)?.get(expert);
    if (name !== undefined) last.set(expert, name);
  }
  return last;
}

/** As messages have it. */
export function describePlacement({ workers, copies }: PlacementIndex): PlacementInput {
  const layers = [...copies].map(([layer, { offsets, workers: holders }]) => ({
    layer,
    copies: Array.from(offsets.subarray(1), (end, expert) => end - offsets[expert]!),
    workers: [...holders],
  }));
  return { workers, layers };
}

function indexLayer({ layer, copies, workers: holders }: LayerPlacement, workers: number): ExpertCopies {
  const offsets = new Uint32Array(copies.length + 1);
  for (const [expert, count] of copies.entries()) offsets[expert + 1] = offsets[expert]! + count;
  if (offsets.at(-1) !== holders.length) {
    const text = `the coordinator placed ${offsets.at(-1)} copies of layer ${layer} on ${holders.length} workers`;
    throw new SwitchyardError('INTERNAL', text, { layer });
  }
  for (let expert = 0; expert < copies.length; expert += 1) {
    for (let copy = offsets[expert]!; copy < offsets[expert + 1]!; copy += 1) {
      const worker = holders[copy]!;
      if (worker < workers && (copy === offsets[expert] || worker > holders[copy - 1]!)) continue;
      const text = `the coordinator placed layer ${layer} expert ${expert} on worker ${worker}; allowed: below ${workers}, ascending`;
      throw new SwitchyardError('INTERNAL', text, { layer, expert });
    }
  }
  return { offsets, workers: Uint32Array.from(holders) };
}
