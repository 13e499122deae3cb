import { insert, remove } from './sorted-list.js';

/** By number of the expert: the slots of the workers with a copy, ascending. A slot is a worker's number. */
export type CopyLists = readonly (readonly number[])[];

/** What is known of the worker in a slot. */
export interface CopyHolder {
  /** Whether it lives: one that does not holds nothing. */
  alive: boolean;
  /** Whether routers may reach it: what it alone serves is lacking. */
  reached: boolean;
  /** Copies that its memory holds. */
  capacity: number;
  /** The assignment that its last report follows, as `Reconciler.versions` counts them. */
  acknowledged: number;
  /** Whether it has reported the expert loaded. */
  has(expert: number): boolean;
}

export interface Situation {
  /** By slot. */
  holders: readonly CopyHolder[];
  /** Where copies shall be. Whoever is to leave is not in it. An expert without a worker here is served by none. */
  target: CopyLists;
  /** The oldest epoch that a router uses. */
  oldestInUse: number;
  /** Whether a router uses a copy that is in no placement that it uses. */
  isHeld: (expert: number, slot: number) => boolean;
  /** Copies of experts that serve already that may be loaded at once, and that may be begun now. */
  loadsMax: number;
  loadsNow: number;
}

export interface Steps {
  /** Slots of workers that must hold other experts than before. */
  assigned: ReadonlySet<number>;
  /** Experts that are served by other copies than before: if there are any, a new epoch has begun. */
  published: readonly number[];
  /** Loads that were begun beyond those of experts that nobody serves. */
  begun: number;
  /** Experts whose target cannot be reached, for nothing moves that would make room. */
  stuck: readonly number[];
}

/** What reconciling reads of one expert, beside its copies. */
interface Motion {
  /** By slot: copies that the worker has, is to have, or has not yet let go of. */
  used: Uint32Array;
  /** Loads under way of experts that serve already. */
  limited: number;
  /** Whether anything is under way that may yet make room. */
  moving: boolean;
}

const slotsMax = 2 ** 16;
const keyOf = (expert: number, slot: number) => expert * slotsMax + slot;

/**
 * Brings copies from where they are to where they shall be, a step at a time: a copy is loaded, then published; the one that it replaces is
 * published no more, and dropped when no router uses an epoch in which it was. So an expert is served as long as a worker that
 * the target does not give up has it, and by no fewer copies than before or the target has, unless memory is too small for both.
 * A worker is never told to hold more than its memory. Targets may change at any time. No input, output or time.
 */
export class Reconciler {
  epoch = 0;
  /** By slot: counts the changes of what the worker is told to hold. */
  readonly versions: number[] = [];
  /** What workers are told to hold: copies that load, serve or drain. */
  readonly assigned: number[][];
  /** What routers are told: copies that serve. */
  readonly published: number[][];
  /** Experts of which published copies are gone since the epoch began. */
  private readonly lost = new Set<number>();
  /** By copy that drains: the epoch from which on it is not published. */
  private readonly drainingSince = new Map<number, number>();
  /** By copy that a worker shall drop: the assignment that says so, until the worker reports that it follows it. */
  private readonly dropping = new Map<number, number>();
  /** Where nothing moves, surplus copies make room though their expert has fewer for a while; what has none even so is stuck. */
  private relaxed = false;

  constructor(readonly experts: number) {
    this.assigned = Array.from({ length: experts }, () => []);
    this.published = Array.from({ length: experts }, () => []);
  }

  /** A worker has joined that holds these experts; who knew of them before may use them still. Slots are taken from 0 on. */
  adopt(slot: number, experts: Iterable<number>): void {
    this.versions[slot] = (this.versions[slot] ?? 0) + 1;
    for (const expert of experts) {
      insert(this.assigned[expert]!, slot);
      this.drainingSince.set(keyOf(expert, slot), this.epoch);
    }
  }

  /** The worker of a slot is gone with all that it held. */
  forget(slot: number): void {
    for (const holders of this.assigned) if (holders.includes(slot)) remove(holders, slot);
    // Until the next epoch begins, routers that join are told what the others know.
    for (const [expert, holders] of this.published.entries())
      if (holders.includes(slot)) this.lost.add(expert);
    for (const keys of [this.drainingSince, this.dropping])
      for (const key of keys.keys()) if (key % slotsMax === slot) keys.delete(key);
  }

  /** Whether published copies are gone that routers have not been told of. */
  get hasLost(): boolean {
    return this.lost.size > 0;
  }

  /** Whether there are copies that are published no more but may still be used. */
  get drains(): boolean {
    return this.drainingSince.size > 0;
  }

  /** Whether a copy is published no more but may still be used. */
  isDraining(expert: number, slot: number): boolean {
    return this.drainingSince.has(keyOf(expert, slot));
  }

  reconcile(situation: Situation): Steps {
    const assigned = new Set<number>();
    for (const [key, version] of this.dropping)
      if (situation.holders[key % slotsMax]!.acknowledged >= version) this.dropping.delete(key);
    const published = this.publish(situation);
    for (let expert = 0; expert < this.experts; expert += 1) this.drop(situation, expert, assigned);
    const motion = this.survey(situation);
    const begun = this.load(situation, motion, assigned);
    for (const slot of assigned) this.versions[slot]! += 1;
    const moves = motion.moving || assigned.size > 0 || published.length > 0;
    const waiting = moves ? [] : this.unreached(situation);
    const stuck = this.relaxed ? waiting : [];
    this.relaxed = waiting.length > 0 && !this.relaxed;
    // Nothing has changed yet.
    return this.relaxed ? this.reconcile(situation) : { assigned, published, begun, stuck };
  }

  private publish(situation: Situation): number[] {
    const changed: number[] = [];
    for (let expert = 0; expert < this.experts; expert += 1) {
      if (this.servesAsBefore(situation, expert) && !this.lost.has(expert)) continue;
      const before = this.published[expert]!;
      const after = this.serving(situation, expert);
      const isSame = after.length === before.length && after.every((slot, at) => slot === before[at]);
      if (isSame && !this.lost.has(expert)) continue;
      for (const slot of before)
        if (!after.includes(slot) && this.assigned[expert]!.includes(slot))
          this.drainingSince.set(keyOf(expert, slot), this.epoch + 1);
      for (const slot of after) this.drainingSince.delete(keyOf(expert, slot));
      this.published[expert] = after;
      changed.push(expert);
    }
    if (changed.length > 0) this.epoch += 1;
    this.lost.clear();
    return changed;
  }

  /** A quick answer for what most experts do most of the time: they serve where they shall be, or none of their copies is there yet. */
  private servesAsBefore({ holders, target }: Situation, expert: number): boolean {
    const [before, copies, wanted] = [this.published[expert]!, this.assigned[expert]!, target[expert]!];
    if (before.length > 0 && (before.length !== copies.length || before.length !== wanted.length))
      return false;
    for (let at = 0; at < copies.length; at += 1) {
      const slot = copies[at]!;
      const isThere = holders[slot]!.alive && holders[slot]!.has(expert);
      if (before.length === 0 ? isThere : !isThere || before[at] !== slot || wanted[at] !== slot)
        return false;
    }
    return true;
  }

  /** The copies that serve from now on: those of the target, and others as long as these are too few. */
  private serving({ holders, target }: Situation, expert: number): number[] {
    const wanted = target[expert]!;
    if (wanted.length === 0) return [];
    const held = this.assigned[expert]!.filter((slot) => holders[slot]!.alive && holders[slot]!.has(expert));
    const serving = held.filter((slot) => wanted.includes(slot));
    const before = this.published[expert]!.filter((slot) => held.includes(slot));
    const least = this.relaxed ? 1 : Math.max(1, Math.min(wanted.length, before.length));
    for (const others of [before, held])
      for (const slot of others) if (serving.length < least && !serving.includes(slot)) serving.push(slot);
    return serving.sort((a, b) => a - b);
  }

  private drop({ target, oldestInUse, isHeld }: Situation, expert: number, assigned: Set<number>): void {
    const copies = this.assigned[expert]!;
    for (let at = copies.length - 1; at >= 0; at -= 1) {
      const slot = copies[at]!;
      if (this.published[expert]!.includes(slot) || target[expert]!.includes(slot)) continue;
      const key = keyOf(expert, slot);
      if ((this.drainingSince.get(key) ?? 0) > oldestInUse || isHeld(expert, slot)) continue;
      copies.splice(at, 1);
      this.drainingSince.delete(key);
      this.dropping.set(key, this.versions[slot]! + 1);
      assigned.add(slot);
    }
  }

  private isLacking({ holders }: Situation, expert: number): boolean {
    return !this.published[expert]!.some((slot) => holders[slot]!.reached);
  }

  private survey(situation: Situation): Motion {
    const { holders } = situation;
    const used = new Uint32Array(holders.length);
    let limited = 0;
    let moving = this.dropping.size > 0;
    for (const key of this.dropping.keys()) used[key % slotsMax]! += 1;
    for (let expert = 0; expert < this.experts; expert += 1) {
      for (const slot of this.assigned[expert]!) {
        used[slot]! += 1;
        const loads = !holders[slot]!.has(expert);
        moving ||= loads || !this.published[expert]!.includes(slot);
        if (loads && !this.isLacking(situation, expert)) limited += 1;
      }
    }
    return { used, limited, moving };
  }

  /** Begins loads where there is room: first those of experts that nobody serves in reach, then of others, as many as may be. */
  private load(situation: Situation, motion: Motion, assigned: Set<number>): number {
    const { target, loadsMax, loadsNow } = situation;
    let left = Math.max(0, Math.min(loadsMax - motion.limited, loadsNow));
    let begun = 0;
    for (const lacking of [true, false]) {
      for (let expert = 0; expert < this.experts; expert += 1) {
        if (this.isLacking(situation, expert) !== lacking) continue;
        for (const slot of target[expert]!) {
          if (!this.mayLoad(situation, motion, expert, slot)) continue;
          if (!lacking && left === 0) {
            motion.moving = true;
            return begun;
          }
          if (!lacking) {
            left -= 1;
            begun += 1;
          }
          insert(this.assigned[expert]!, slot);
          motion.used[slot]! += 1;
          motion.moving = true;
          assigned.add(slot);
        }
      }
    }
    return begun;
  }

  private mayLoad({ holders }: Situation, { used }: Motion, expert: number, slot: number): boolean {
    const { alive, capacity } = holders[slot]!;
    return (
      alive &&
      used[slot]! < capacity &&
      !this.assigned[expert]!.includes(slot) &&
      !this.dropping.has(keyOf(expert, slot))
    );
  }

  private unreached({ target }: Situation): number[] {
    const waits = (wanted: readonly number[], expert: number) =>
      wanted.some((slot) => !this.assigned[expert]!.includes(slot));
    return [...target.keys()].filter((expert) => waits(target[expert]!, expert));
  }
}
