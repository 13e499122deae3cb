import { AsyncResource } from 'node:async_hooks';
import { randomBytes, randomUUID } from 'node:crypto';
import type { Clock, Timer } from './clock.js';
import type { Random } from './random.js';
import type { Usage } from './runtime.js';

class Timeout implements Timer {
  constructor(private readonly handle: NodeJS.Timeout) {}

  cancel(): void {
    clearTimeout(this.handle);
  }

  unref(): Timer {
    this.handle.unref();
    return this;
  }
}

/** All that runs with one period: a process that has nothing else to do wakes once for it. */
class Ticks {
  private readonly running = new Set<Tick>();
  private readonly interval: NodeJS.Timeout;

  constructor(private readonly ms: number) {
    this.interval = setInterval(() => this.turn(), ms);
  }

  add(run: () => void): Timer {
    // In the context of whoever asks for it, as timers of their own would.
    const tick = new Tick(AsyncResource.bind(run), this);
    this.running.add(tick);
    this.keepProcess();
    return tick;
  }

  /** What one throws is thrown when the others have run. */
  private turn(): void {
    const errors: unknown[] = [];
    for (const due of [...this.running]) {
      if (!this.running.has(due)) continue;
      try {
        due.run();
      } catch (error) {
        errors.push(error);
      }
    }
    for (const error of errors)
      queueMicrotask(() => {
        throw error;
      });
  }

  /** Idempotent. */
  remove(tick: Tick): void {
    if (!this.running.delete(tick)) return;
    if (this.running.size > 0) this.keepProcess();
    else {
      clearInterval(this.interval);
      ticks.delete(this.ms);
    }
  }

  /** As long as one of them does. */
  keepProcess(): void {
    if ([...this.running].some(({ keepsProcess }) => keepsProcess)) this.interval.ref();
    else this.interval.unref();
  }
}

class Tick implements Timer {
  keepsProcess = true;

  constructor(
    readonly run: () => void,
    private readonly ticks: Ticks,
  ) {}

  cancel(): void {
    this.ticks.remove(this);
  }

  unref(): Timer {
    this.keepsProcess = false;
    this.ticks.keepProcess();
    return this;
  }
}

/** By their period. */
const ticks = new Map<number, Ticks>();

function every(ms: number, run: () => void): Timer {
  const shared = ticks.get(ms) ?? new Ticks(ms);
  ticks.set(ms, shared);
  return shared.add(run);
}

class Immediate implements Timer {
  constructor(private readonly handle: NodeJS.Immediate) {}

  cancel(): void {
    clearImmediate(this.handle);
  }

  unref(): Timer {
    this.handle.unref();
    return this;
  }
}

/** The clocks and timers of this process. */
export const systemClock: Clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  after: (ms, run) => new Timeout(setTimeout(run, ms)),
  every,
  soon: (run) => new Immediate(setImmediate(run)),
};

export const systemRandom: Random = { unit: Math.random, bytes: randomBytes, uuid: () => randomUUID() };

/** `lookedSeconds`: what Node takes for busy, though the event loop only looked for messages. */
export function usageBeside(lookedSeconds: () => number): Usage {
  const elapsed = () => {
    const { active, idle } = performance.eventLoopUtilization();
    return { busy: active / 1000 - lookedSeconds(), all: (active + idle) / 1000 };
  };
  return {
    rssBytes: () => process.memoryUsage.rss(),
    eventLoopBusySeconds: () => elapsed().busy,
    eventLoopMeter() {
      let last = elapsed();
      return () => {
        const now = elapsed();
        const share = (now.busy - last.busy) / (now.all - last.all);
        last = now;
        return Number.isFinite(share) ? Math.max(0, share) : 0;
      };
    },
  };
}
