import { copiesMessage } from '../common/expert-copies.js';
import type { LayerPlacement } from '../common/generated/switchyard/v1/LayerPlacement.js';
import type { ExpertOrder } from '../model/expert-order.js';
import type { LoadLimits } from '../placement/loading.js';
import { type CopyHolder, Reconciler, type Situation, type Steps } from '../placement/reconcile.js';
import { insert } from '../placement/sorted-list.js';
import type { Member } from './membership.js';

export type CopyState = 'loading' | 'serving' | 'draining';
/** How many copies of a worker are in which state. */
export type CopyCounts = Record<CopyState, number>;

/** What routers use. */
export type RoutersUse = Pick<Situation, 'oldestInUse' | 'isHeld'>;

/** What is told of all copies together. */
interface Summary {
  /** By slot. */
  counts: CopyCounts[];
  /** Experts that nobody serves, ascending. */
  missing: number[];
  /** Slots of those who served them last. */
  missed: Set<number>;
  /** How many copies shall be that no worker is told to hold yet. */
  planned: number;
}

const nobody: CopyHolder = { alive: false, reached: false, capacity: 0, acknowledged: 0, has: () => false };

/**
 * Where the copies of experts are and shall be. Workers are known by slots, which stay a name's until it is freed. Times are monotonic
 * milliseconds.
 */
export class ClusterPlacement {
  private targetNow: number[][];
  readonly names: string[] = [];
  private readonly slots = new Map<string, number>();
  /** Slots of names that nobody remembers. */
  private readonly unnamed = new Set<number>();
  /** By slot; null: it is dead. */
  private readonly members: (Member | null)[] = [];
  private readonly reconciler: Reconciler;
  /** By number of the expert: the slot that served it last; -1: none has. */
  private readonly servedLast: Int32Array;
  /** By layer: the epoch in which its copies changed last. */
  private readonly changedIn = new Map<number, number>();
  /** When the next copy of an expert that serves already may be begun. */
  private nextLoadMs = 0;
  private paced = false;
  /** Null: copies have changed since it was made. */
  private summary: Summary | null = null;

  constructor(
    readonly experts: ExpertOrder,
    private readonly expertBytes: number,
    private readonly limits: LoadLimits,
  ) {
    this.reconciler = new Reconciler(experts.total);
    this.targetNow = Array.from({ length: experts.total }, () => []);
    this.servedLast = new Int32Array(experts.total).fill(-1);
  }

  /** Where copies shall be, by number of the expert. */
  get target(): number[][] {
    return this.targetNow;
  }

  set target(slots: number[][]) {
    this.targetNow = slots;
    this.summary = null;
  }

  /** 0: nothing has been published. */
  get epoch(): number {
    return this.reconciler.epoch;
  }

  get published(): readonly (readonly number[])[] {
    return this.reconciler.published;
  }

  /** Whether copies wait for routers to move on. */
  get drains(): boolean {
    return this.reconciler.drains;
  }

  /** Whether something waits for time to pass. */
  get waits(): boolean {
    return this.paced;
  }

  slotOf(name: string): number {
    return this.slots.get(name) ?? -1;
  }

  /** A worker has joined. What it holds is kept where it is. */
  join(member: Member): void {
    const { name } = member.hello;
    let slot = this.slotOf(name);
    if (slot < 0) {
      slot = this.freeSlot() ?? this.names.length;
      this.unnamed.delete(slot);
      this.names[slot] = name;
      this.slots.set(name, slot);
    }
    this.members[slot] = member;
    this.summary = null;
    const held = [...member.ready.numbers()];
    this.reconciler.adopt(slot, held);
    for (const expert of held) if (!this.target[expert]!.includes(slot)) insert(this.target[expert]!, slot);
  }

  /** A worker is gone. */
  end(member: Member): void {
    const slot = this.slotOf(member.hello.name);
    if (this.members[slot] !== member) return;
    this.members[slot] = null;
    this.summary = null;
    for (const [expert, slots] of this.published.entries())
      if (slots.includes(slot)) this.servedLast[expert] = slot;
    this.reconciler.forget(slot);
  }

  /** The name of a worker that is gone is not needed any more: its slot may become another's. */
  free(name: string): void {
    const slot = this.slotOf(name);
    if (slot < 0 || this.members[slot] !== null) return;
    this.slots.delete(name);
    this.unnamed.add(slot);
  }

  /** One that no placement has told of since the epoch began, so that routers who are told only what changed never take one worker for the other. */
  private freeSlot(): number | undefined {
    if (this.reconciler.hasLost) return undefined;
    return [...this.unnamed].find((slot) => this.target.every((slots) => !slots.includes(slot)));
  }

  /** Copies that are there on the workers of these slots: those of the target; where it has none, any that are held. */
  present(slots: ReadonlySet<number>): number[][] {
    return this.target.map((wanted, expert) => {
      const kept = wanted.filter((slot) => slots.has(slot));
      if (kept.length > 0) return kept;
      const held = (slot: number) => slots.has(slot) && this.members[slot]?.ready.has(expert) === true;
      return this.reconciler.assigned[expert]!.filter(held);
    });
  }

  /** The next steps to the target, as far as they can be made now. `capacityOf`: copies that a worker's memory holds. */
  reconcile(routers: RoutersUse, capacityOf: (member: Member) => number, nowMs: number): Steps {
    const { loads, bytesPerSecond } = this.limits;
    // What a second allows may be begun at once; it is made up for afterwards.
    const loadsOfSecond = Math.max(1, Math.floor(bytesPerSecond / this.expertBytes));
    const loadsNow = nowMs >= this.nextLoadMs ? loadsOfSecond : 0;
    const steps = this.reconciler.reconcile({
      holders: this.members.map((member) =>
        member === null ? nobody : holderOf(member, capacityOf(member)),
      ),
      target: this.target,
      ...routers,
      loadsMax: loads,
      loadsNow,
    });
    if (steps.assigned.size > 0 || steps.published.length > 0 || steps.stuck.length > 0) this.summary = null;
    if (steps.begun > 0) this.nextLoadMs = nowMs + (steps.begun * this.expertBytes * 1000) / bytesPerSecond;
    this.paced = steps.begun > 0 || loadsNow === 0;
    for (const expert of steps.stuck) this.target[expert] = [...this.reconciler.assigned[expert]!];
    for (const expert of steps.published) {
      const [first] = this.published[expert]!;
      if (first !== undefined) this.servedLast[expert] = first;
      this.changedIn.set(this.experts.at(expert).layer, this.epoch);
    }
    return steps;
  }

  /** What a worker is told to hold, by number. */
  assigned({ hello }: Member): { version: number; experts: number[] } {
    const slot = this.slotOf(hello.name);
    const { assigned, versions } = this.reconciler;
    const experts = [...assigned.keys()].filter((expert) => assigned[expert]!.includes(slot));
    return { version: versions[slot]!, experts };
  }

  /** Whether a worker holds nothing that anybody may use, nor is told to. */
  isFree({ hello }: Member): boolean {
    const slot = this.slotOf(hello.name);
    return this.reconciler.assigned.every((slots) => !slots.includes(slot));
  }

  /** Whether all that a worker has to load is served as often as it must be by others that stay. `leaving`: slots of those that do not. */
  isSpare({ hello }: Member, leaving: ReadonlySet<number>, copies: number): boolean {
    const slot = this.slotOf(hello.name);
    if (!this.counts()[slot]?.loading) return true;
    const stays = (other: number) => this.members[other]?.unreached === '' && !leaving.has(other);
    return this.reconciler.assigned.every(
      (slots, expert) =>
        !slots.includes(slot) ||
        this.members[slot]?.ready.has(expert) === true ||
        this.published[expert]!.filter(stays).length >= copies,
    );
  }

  /** By slot. */
  counts(): readonly CopyCounts[] {
    return this.summarize().counts;
  }

  /** The copies of an expert, by its number. */
  copiesOf(expert: number): { worker: string; state: CopyState }[] {
    return this.reconciler.assigned[expert]!.map((slot) => {
      return { worker: this.names[slot]!, state: this.stateOf(expert, slot) };
    });
  }

  /** The copies of an expert, and those that it shall have and no worker is told to hold yet, by its number. */
  slotsOf(expert: number): { slot: number; state: CopyState | 'planned' }[] {
    const assigned = this.reconciler.assigned[expert]!;
    const planned = this.target[expert]!.filter((slot) => !assigned.includes(slot));
    return [
      ...assigned.map((slot) => ({ slot, state: this.stateOf(expert, slot) })),
      ...planned.map((slot) => ({ slot, state: 'planned' as const })),
    ];
  }

  /** How many copies shall be that no worker is told to hold yet. */
  plannedCount(): number {
    return this.summarize().planned;
  }

  /** Of a copy that a worker is told to hold. */
  private stateOf(expert: number, slot: number): CopyState {
    if (this.published[expert]!.includes(slot)) return 'serving';
    return this.reconciler.isDraining(expert, slot) ? 'draining' : 'loading';
  }

  /** Experts that nobody serves, ascending. */
  missing(): readonly number[] {
    return this.summarize().missing;
  }

  /** The worker that loads an expert, or else the one that served it last; null: none. */
  workerFor(expert: number): string | null {
    const slot = this.reconciler.assigned[expert]![0] ?? this.servedLast[expert]!;
    return this.names[slot] ?? null;
  }

  /** Whether errors still name a worker: it was the last that served an expert which nobody serves. */
  isMissed(name: string): boolean {
    return this.summarize().missed.has(this.slotOf(name));
  }

  private summarize(): Summary {
    if (this.summary !== null) return this.summary;
    const counts = this.names.map((): CopyCounts => ({ loading: 0, serving: 0, draining: 0 }));
    const missing: number[] = [];
    let planned = 0;
    for (let expert = 0; expert < this.experts.total; expert += 1) {
      const assigned = this.reconciler.assigned[expert]!;
      for (const slot of assigned) counts[slot]![this.stateOf(expert, slot)] += 1;
      for (const slot of this.target[expert]!) if (!assigned.includes(slot)) planned += 1;
      if (this.published[expert]!.length === 0) missing.push(expert);
    }
    const missed = new Set(missing.map((expert) => this.servedLast[expert]!).filter((slot) => slot >= 0));
    this.summary = { counts, missing, missed, planned };
    return this.summary;
  }

  /** Of the layers that changed after `epoch`; 0: of all. */
  describe(epoch: number): LayerPlacement[] {
    const layers = this.experts.layers.filter(
      ({ layer }) => epoch === 0 || (this.changedIn.get(layer) ?? 0) > epoch,
    );
    return layers.map(({ layer }) => {
      const { first, experts } = this.experts.rangeOf(layer);
      return copiesMessage(layer, this.published.slice(first, first + experts));
    });
  }
}

const holderOf = ({ acknowledged, ready, unreached }: Member, capacity: number): CopyHolder => ({
  alive: true,
  reached: unreached === '',
  capacity,
  acknowledged,
  has: (expert) => ready.has(expert),
});
