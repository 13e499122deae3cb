import { systemClock } from '../runtime/system.js';

interface Event {
  readonly atMs: number;
  readonly order: number;
  run: (() => void) | null;
}

/** What takes a scheduled event back. Idempotent. */
export type Cancel = () => void;

/**
 * Time that passes only from event to event. Events of one moment run in the order in which they were scheduled, and the code that
 * an event sets in motion comes to rest before the next one: nothing depends on how fast the machine is.
 */
export class VirtualTime {
  /** Events run. */
  events = 0;
  private ms = 0;
  private order = 0;
  /** A binary heap by time and order. */
  private readonly heap: Event[] = [];

  get nowMs(): number {
    return this.ms;
  }

  /** Runs once, `ms` from now. */
  after(ms: number, run: () => void): Cancel {
    const event: Event = { atMs: this.ms + Math.max(0, ms), order: this.order++, run };
    this.push(event);
    return () => {
      event.run = null;
    };
  }

  /** Runs events until `done` or until `untilMs` of virtual time. Returns whether it was `done`. */
  async run(untilMs: number, done: () => boolean): Promise<boolean> {
    await rest();
    while (!done()) {
      const next = this.heap[0];
      if (next === undefined || next.atMs > untilMs) {
        this.ms = Math.max(this.ms, untilMs);
        return done();
      }
      this.pop();
      if (next.run === null) continue;
      this.ms = next.atMs;
      this.events += 1;
      next.run();
      await rest();
    }
    return true;
  }

  private push(event: Event): void {
    const { heap } = this;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  private pop(): void {
    const { heap } = this;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child += 1;
      if (!before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
  }
}

function before(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}

/** Resolves when no promise is left that could settle by itself: a turn of the real event loop begins after all microtasks. */
function rest(): Promise<void> {
  return new Promise((resolve) => systemClock.soon(resolve));
}
