import type { ClusterView } from '../common/generated/switchyard/v1/ClusterView.js';
import type { Placement } from '../common/generated/switchyard/v1/Placement.js';
import type { Logger } from '../common/log.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { Links } from './links.js';
import {
  type HeldCopy,
  heldKey,
  heldMsMax,
  indexPlacement,
  type PlacementIndex,
  withCopiesHeld,
} from './placement.js';
import { PlacementsInUse } from './placements-in-use.js';

/** How often copies that should be given up are looked at again, where they may not yet. */
const againMs = 500;

export interface PlacementsOptions {
  links: Pick<Links, 'find' | 'changes'>;
  clock: Clock;
  /** Whether this router is a member: without a coordinator nobody drops a copy. */
  connected: () => boolean;
  /** Which placement is used has changed, or which copies are held. */
  onUse: () => void;
  /** Copies have been held for as long as they may: `moveOn` is to be called. */
  onHeldLong: () => void;
  log: Logger;
}

/** The placements that a router knows: the one that the coordinator told last, the one that chunks begin with, and those that chunks use. */
export class RouterPlacements {
  /** The latest, with copies of those before for experts that are out of reach by it: no holder drops these as long as they are used here. */
  current: PlacementIndex | null = null;
  /** As the coordinator told it. */
  latest: PlacementIndex | null = null;
  /** Of the chunks under way. */
  readonly inUse = new PlacementsInUse((left) => {
    if (left !== this.current) this.options.onUse();
  });
  /** None has come since this router joined: meanwhile nobody asked which one it uses, and holders dropped copies. */
  private isNew = true;
  /** Layer to why an expert of it cannot be reached, or empty; of the placement and the links as they are. */
  private readonly unreached = new Map<number, string>();
  private unreachedAt: { placement: PlacementIndex | null; changes: number } = {
    placement: null,
    changes: 0,
  };
  /** Of which latest placement and links the current one was made. */
  private movedAt: { latest: PlacementIndex | null; changes: number } = { latest: null, changes: 0 };
  /** Runs while copies are held of placements before the latest. */
  private heldTimer: Timer | null = null;

  constructor(private readonly options: PlacementsOptions) {}

  /** The oldest that is used, or else the current one. */
  get oldest(): { term: number; epoch: number } {
    return this.inUse.oldest ?? this.current ?? { term: 0, epoch: 0 };
  }

  /** Copies that may still be used, although no placement that is used has them: each once. */
  get held(): readonly HeldCopy[] {
    const used = new Set([...this.inUse.all(), ...(this.current ? [this.current] : [])]);
    const lists = [...used].map(({ held }) => held).filter(({ length }) => length > 0);
    if (lists.length <= 1) return lists[0] ?? [];
    return [...new Map(lists.flat().map((copy) => [heldKey(copy), copy])).values()];
  }

  /** The router has joined, and knows nothing that it may hold on to. */
  joined(): void {
    this.isNew = true;
  }

  /** Takes what the coordinator tells; `moveOn` follows. Throws INTERNAL for what is no placement. */
  learn(view: ClusterView, placement: Placement): void {
    this.latest = indexPlacement(view, placement, this.latest);
    if (this.isNew) this.current = null;
    this.isNew = false;
  }

  /** Takes the latest placement, but for experts that would go out of reach with it. Call it when that or links have changed. */
  moveOn(): void {
    const { latest, current, movedAt } = this;
    const { links, clock, connected, onUse } = this.options;
    if (latest === null || current === latest) return;
    if (movedAt.latest === latest && movedAt.changes === links.changes) return;
    this.movedAt = { latest, changes: links.changes };
    const nowMs = clock.now();
    const holding = {
      isReached: (worker: string) => links.find(worker).link !== null,
      nowMs,
      untilMs: connected() ? nowMs - heldMsMax : Number.NEGATIVE_INFINITY,
    };
    this.current = current === null ? latest : withCopiesHeld(latest, current, holding);
    this.watchHeld();
    if (this.inUse.oldest === null) onUse();
  }

  /** Why an expert of these layers cannot be reached from here, by the current placement, in words; empty: all can, or there is no placement. */
  whyNotReached(layers: Iterable<number>): string {
    const { current } = this;
    if (current === null) return '';
    const { changes } = this.options.links;
    if (this.unreachedAt.placement !== current || this.unreachedAt.changes !== changes) {
      this.unreached.clear();
      this.unreachedAt = { placement: current, changes };
    }
    for (const layer of layers) {
      let reason = this.unreached.get(layer);
      if (reason === undefined) {
        reason = this.findUnreached(current, layer);
        this.unreached.set(layer, reason);
      }
      if (reason !== '') return reason;
    }
    return '';
  }

  /** Names the first expert that is out of reach by the latest placement; empty: there is none. */
  whyAwaited(): string {
    for (const layer of this.latest?.copies.keys() ?? []) {
      const reason = this.findUnreached(this.latest!, layer);
      if (reason !== '') return reason;
    }
    return '';
  }

  /** Looks again when the first of the copies that are held has been held for as long as it may. */
  private watchHeld(): void {
    this.heldTimer?.cancel();
    this.heldTimer = null;
    const { clock, log } = this.options;
    const { held } = this.current!;
    if (held.length === 0) return;
    const dueMs =
      held.reduce((least, { sinceMs }) => Math.min(least, sinceMs), Number.POSITIVE_INFINITY) + heldMsMax;
    this.heldTimer = clock
      .after(Math.max(againMs, dueMs - clock.now()), () => {
        this.movedAt = { latest: null, changes: 0 };
        this.options.onHeldLong();
        if (this.current!.held.length < held.length)
          log.warn({ event: 'copies-given-up', epoch: this.current!.epoch, reason: this.whyAwaited() });
      })
      .unref();
  }

  /** Names the first expert of a layer without a copy in reach; empty: there is none. */
  private findUnreached(placement: PlacementIndex, layer: number): string {
    const { offsets, workers: holders } = placement.copies.get(layer) ?? {
      offsets: [0],
      workers: Uint32Array.of(),
    };
    if (offsets.length === 1) return `the experts of layer ${layer} are on no worker`;
    const reached = placement.workers.map((worker) => this.options.links.find(worker).link !== null);
    for (let expert = 0; expert + 1 < offsets.length; expert += 1) {
      const own = holders.subarray(offsets[expert], offsets[expert + 1]);
      if (!own.some((worker) => reached[worker])) return this.describeUnreached(placement, layer, expert);
    }
    return '';
  }

  private describeUnreached({ workers, copies }: PlacementIndex, layer: number, expert: number): string {
    const { offsets, workers: holders } = copies.get(layer)!;
    const at = `layer ${layer} expert ${expert}`;
    if (offsets[expert] === offsets[expert + 1]) return `${at} is on no worker now`;
    const holder = workers[holders[offsets[expert]!]!]!;
    return `${at}: no link to worker ${holder}: ${this.options.links.find(holder).reason}`;
  }
}
