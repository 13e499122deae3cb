import type { NodeMessageInput } from '../common/generated/switchyard/v1/NodeMessage.js';
import { createUtilizationMeter } from '../common/metrics.js';

/** Gate counts wait this long for more, so that a burst of chunks is one message. */
const coalesceMs = 3;

/** Reading the resident size walks kernel counters of every thread, so it is not done at every heartbeat. */
const rssEveryMs = 1_000;

/**
 * The router's reports: rows chosen per expert soon after they were chosen, and a heartbeat with the
 * process's figures. What the stream cannot take stays here and goes with the next heartbeat.
 */
export class RouterReporter {
  private readonly counts = new Map<number, Float64Array>();
  private readonly meter = createUtilizationMeter();
  private tokens = 0;
  private utilization = 0;
  private rssBytes = 0;
  private rssReadAt = Number.NEGATIVE_INFINITY;
  private timer: NodeJS.Timeout | null = null;
  private send: ((message: NodeMessageInput) => boolean) | null = null;

  constructor(private readonly bytesInFlight: () => number) {}

  /** `send` returns false if the message was not taken. */
  start(send: (message: NodeMessageInput) => boolean): void {
    this.send = send;
  }

  stop(): void {
    this.send = null;
    if (this.timer !== null) clearTimeout(this.timer);
    this.timer = null;
  }

  /** Adds tokens that arrived. */
  countTokens(tokens: number): void {
    this.tokens += tokens;
  }

  /** Adds the rows that a chunk's gate chose per expert of a layer, for the feedback loop. */
  countRows(layer: number, rows: Uint32Array): void {
    let sum = this.counts.get(layer);
    if (sum === undefined) {
      sum = new Float64Array(rows.length);
      this.counts.set(layer, sum);
    }
    for (let expert = 0; expert < rows.length; expert += 1) sum[expert]! += rows[expert]!;
    if (this.timer === null && this.send !== null) {
      this.timer = setTimeout(() => this.flush(), coalesceMs);
    }
  }

  /** The heartbeat: counts are taken out, figures measured anew. */
  heartbeat(): NodeMessageInput {
    this.utilization = this.meter();
    if (performance.now() - this.rssReadAt >= rssEveryMs) {
      this.rssReadAt = performance.now();
      this.rssBytes = process.memoryUsage.rss();
    }
    const message = this.message();
    this.clear();
    return message;
  }

  private flush(): void {
    this.timer = null;
    if (this.send?.(this.message())) this.clear();
  }

  private message(): NodeMessageInput {
    return {
      router: {
        loads: [...this.counts].map(([layer, rows]) => ({ layer, rows: [...rows] })),
        tokens: this.tokens,
        bytesInFlight: this.bytesInFlight(),
        eventLoopUtilization: this.utilization,
        rssBytes: this.rssBytes,
      },
    };
  }

  private clear(): void {
    this.counts.clear();
    this.tokens = 0;
  }
}
