import type { Clock, Timer } from '../runtime/clock.js';
import type { Runtime } from '../runtime/runtime.js';
import type { SeededRandom } from './random.js';
import type { ClockSkew } from './rates.js';
import { type RowCosts, SimulatedRows } from './rows.js';
import type { Cancel, VirtualTime } from './virtual-time.js';

export interface ProcessOptions {
  time: VirtualTime;
  name: string;
  /** Among those that bore the name, from 1 on. */
  number: number;
  host: string;
  skew: ClockSkew;
  random: SeededRandom;
  slabBytes: number;
  costs: RowCosts;
}

/** A process of the cluster, as its host sees it: it runs, stands still, or is dead. What is not running does nothing. */
export class SimulatedProcess {
  readonly name: string;
  readonly number: number;
  readonly host: string;
  readonly runtime: Runtime;
  readonly rows: SimulatedRows;
  state: 'running' | 'stopped' | 'dead' = 'running';
  readonly startedMs: number;
  /** When it came to stand still. */
  stoppedAtMs = 0;
  /** When one of its connections broke last by a fault of the network, and when it died. */
  brokenMs = Number.NEGATIVE_INFINITY;
  diedMs = Number.POSITIVE_INFINITY;
  /** The times in which it stood still, over by now. */
  private readonly stood: { fromMs: number; toMs: number }[] = [];
  private readonly time: VirtualTime;
  /** What happened to it while it stood still: its timers first, as an event loop takes them. */
  private readonly due: { timers: (() => void)[]; messages: (() => void)[] } = { timers: [], messages: [] };
  private readonly deaths = new Set<() => void>();

  constructor(options: ProcessOptions) {
    const { time, name, number, host, skew, random, slabBytes, costs } = options;
    this.time = time;
    this.startedMs = time.nowMs;
    this.name = number === 1 ? name : `${name}#${number}`;
    this.number = number;
    this.host = host;
    const clock = new ProcessClock(time, skew, (run) => this.timer(run));
    this.rows = new SimulatedRows({ bytesLimit: slabBytes, clock, costs });
    this.runtime = {
      clock,
      random,
      rows: this.rows,
      usage: { rssBytes: () => 0, eventLoopBusySeconds: () => 0, eventLoopMeter: () => () => 0 },
    };
  }

  /** Something from outside reaches the process, when it runs. */
  deliver(run: () => void): void {
    if (this.state === 'running') run();
    else if (this.state === 'stopped') this.due.messages.push(run);
  }

  /** As SIGSTOP. */
  stop(): void {
    if (this.state !== 'running') return;
    this.state = 'stopped';
    this.stoppedAtMs = this.time.nowMs;
  }

  /** As SIGCONT: what was due meanwhile happens now, in its order. */
  resume(): void {
    if (this.state !== 'stopped') return;
    this.state = 'running';
    this.stood.push({ fromMs: this.stoppedAtMs, toMs: this.time.nowMs });
    const due = [...this.due.timers.splice(0), ...this.due.messages.splice(0)];
    for (const run of due) this.time.after(0, () => this.deliver(run));
  }

  /** When it went on last. */
  get resumedMs(): number {
    return this.stood.at(-1)?.toMs ?? this.startedMs;
  }

  /** How long it stood still since then. */
  stoodMs(sinceMs: number): number {
    const now = this.state === 'stopped' ? [{ fromMs: this.stoppedAtMs, toMs: this.time.nowMs }] : [];
    return [...this.stood, ...now].reduce(
      (sum, { fromMs, toMs }) => sum + Math.max(0, toMs - Math.max(fromMs, sinceMs)),
      0,
    );
  }

  /** As SIGKILL: its connections break, which their other ends learn. */
  kill(): void {
    if (this.state === 'dead') return;
    this.state = 'dead';
    this.diedMs = this.time.nowMs;
    this.due.timers = [];
    this.due.messages = [];
    for (const death of this.deaths) death();
    this.deaths.clear();
  }

  /** Returns what takes that back. */
  onDeath(run: () => void): () => void {
    this.deaths.add(run);
    return () => this.deaths.delete(run);
  }

  private timer(run: () => void): void {
    if (this.state === 'running') run();
    else if (this.state === 'stopped') this.due.timers.push(run);
  }
}

/** A clock that starts anywhere and goes a little wrong. */
class ProcessClock implements Clock {
  private readonly startMs: number;

  constructor(
    private readonly time: VirtualTime,
    private readonly skew: ClockSkew,
    private readonly fire: (run: () => void) => void,
  ) {
    this.startMs = time.nowMs;
  }

  now(): number {
    return (this.time.nowMs - this.startMs) * this.skew.rate;
  }

  wall(): number {
    return Math.floor(this.skew.wallMs + this.time.nowMs * this.skew.rate);
  }

  after(ms: number, run: () => void): Timer {
    return new ProcessTimer(this.time, this.fire, this.trueMs(ms), run, false);
  }

  every(ms: number, run: () => void): Timer {
    return new ProcessTimer(this.time, this.fire, this.trueMs(ms), run, true);
  }

  /** A little more than it takes by this clock, which rounds: a timer never comes early. */
  private trueMs(ms: number): number {
    return ms <= 0 ? 0 : ms / this.skew.rate + 1e-6;
  }

  soon(run: () => void): Timer {
    return new ProcessTimer(this.time, this.fire, 0, run, false);
  }
}

class ProcessTimer implements Timer {
  private cancelled = false;
  private cancelEvent: Cancel = () => {};

  constructor(
    private readonly time: VirtualTime,
    private readonly fire: (run: () => void) => void,
    private readonly ms: number,
    private readonly run: () => void,
    private readonly again: boolean,
  ) {
    this.arm();
  }

  cancel(): void {
    this.cancelled = true;
    this.cancelEvent();
  }

  unref(): Timer {
    return this;
  }

  private arm(): void {
    this.cancelEvent = this.time.after(this.ms, () =>
      this.fire(() => {
        if (this.cancelled) return;
        // An interval whose process stood still begins anew when it runs.
        if (this.again) this.arm();
        this.run();
      }),
    );
  }
}
