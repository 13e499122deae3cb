import type { Clock, Timer } from '../runtime/clock.js';
import { Standstill } from './lease.js';
import type { Logger } from './log.js';

/** Work of one kind that goes on by this process's own doing, whatever clients, peers and file systems do. */
export interface OwnWork {
  readonly name: string;
  /** How much is under way and of what, in words; null: nothing. */
  underWay(): string | null;
  /** Rises with everything that gets done of it. */
  readonly done: number;
}

export interface LivenessOptions {
  /** There may be more of it later. */
  work: () => readonly OwnWork[];
  /** Work that stands still for longer is a fault of this process. */
  standstillMs: number;
  clock: Clock;
  log: Logger;
  /** Called when work stands still, and when none does any more. */
  onChange: (live: boolean) => void;
}

/** Looks in the time that work may stand still. */
const looks = 10;
const everyMsMax = 1_000;

/** Whether the work of this process gets on. To be busy is to live: it fails when something is to be done and nothing of it gets done. */
export class Liveness {
  /** What stands still, and since when; empty: nothing does. */
  reason = '';
  private readonly timer: Timer;
  private readonly everyMs: number;
  private readonly standstill: Standstill;
  /** For each kind of work what was done, and when it was last seen to get on, or not to be. */
  private readonly seen = new Map<OwnWork, { done: number; atMs: number }>();

  constructor(private readonly options: LivenessOptions) {
    const { standstillMs, clock } = options;
    this.everyMs = Math.min(everyMsMax, standstillMs / looks);
    this.standstill = new Standstill(clock.now());
    this.timer = clock.every(this.everyMs, () => this.look()).unref();
  }

  /** As /healthz answers. */
  health(): { healthy: boolean; reason: string } {
    return { healthy: this.reason === '', reason: this.reason };
  }

  close(): void {
    this.timer.cancel();
  }

  private look(): void {
    const { work, standstillMs, clock, log, onChange } = this.options;
    const nowMs = clock.now();
    const stoodMs = this.standstill.look(nowMs, this.everyMs);
    const reasons = work().flatMap((one) => {
      const last = this.seen.get(one) ?? { done: one.done, atMs: nowMs };
      this.seen.set(one, last);
      const underWay = one.underWay();
      last.atMs = underWay === null || one.done !== last.done ? nowMs : last.atMs + stoodMs;
      last.done = one.done;
      const stillMs = nowMs - last.atMs;
      return stillMs <= standstillMs
        ? []
        : [
            `${one.name} stand still for ${Math.floor(stillMs)} ms: ${underWay}; allowed: ${standstillMs} ms, as standstillMs has it`,
          ];
    });
    const wasLive = this.reason === '';
    this.reason = reasons.join('; ');
    const live = this.reason === '';
    if (live === wasLive) return;
    if (live) log.info({ event: 'moves-again' });
    else log.error({ event: 'stands-still', reason: this.reason });
    onChange(live);
  }
}
