import type { LeaderLease } from '../../services/runtime/leader-lease.js';
import { SimulatedLeaseRecord } from '../../services/simulator/lease-record.js';
import type { SimulatedProcess } from '../../services/simulator/process.js';
import type { SeededRandom } from '../../services/simulator/random.js';
import type { VirtualTime } from '../../services/simulator/virtual-time.js';

/** The one record of a cluster, in memory. Requests reach it, and its answers the process, after a random time or never. */
export class RecordedLease {
  readonly record = new SimulatedLeaseRecord();
  /** Share of requests, and of answers, that are lost. */
  loss = 0;
  delayMsMax = 0;

  constructor(
    private readonly time: VirtualTime,
    private readonly random: SeededRandom,
  ) {}

  /** The lease as a process has it. */
  of(process: SimulatedProcess): LeaderLease {
    return {
      read: (withinMs) => this.request(process, withinMs, () => this.record.stored),
      replace: (version, record, withinMs) =>
        this.request(process, withinMs, () => this.record.replace(version, record)),
      close: () => {},
    };
  }

  private request<Answer>(process: SimulatedProcess, withinMs: number, run: () => Answer): Promise<Answer> {
    return new Promise((resolve, reject) => {
      process.runtime.clock.after(withinMs, () => reject(new Error(`no answer within ${withinMs} ms`)));
      this.travel(() => {
        const answer = run();
        this.travel(() => process.deliver(() => resolve(answer)));
      });
    });
  }

  private travel(arrive: () => void): void {
    const isLost = this.random.unit() < this.loss;
    if (!isLost) this.time.after(this.random.unit() * this.delayMsMax, arrive);
  }
}
