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
  every: (ms, run) => new Timeout(setInterval(run, ms)),
  soon: (run) => new Immediate(setImmediate(run)),
};

export const systemRandom: Random = { unit: Math.random, bytes: randomBytes, uuid: () => randomUUID() };

/** Since the process started. */
export const eventLoopBusySeconds = () => performance.eventLoopUtilization().active / 1000;

export const systemUsage: Usage = {
  rssBytes: () => process.memoryUsage.rss(),
  eventLoopMeter() {
    let last = performance.eventLoopUtilization();
    return () => {
      const now = performance.eventLoopUtilization();
      const { utilization } = performance.eventLoopUtilization(now, last);
      last = now;
      return Number.isFinite(utilization) ? utilization : 0;
    };
  },
};
