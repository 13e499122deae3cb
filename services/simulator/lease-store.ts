import { SwitchyardError } from '../common/errors.js';
import type { LeaderLease } from '../runtime/leader-lease.js';
import { SimulatedLeaseRecord } from './lease-record.js';
import type { Network } from './network.js';
import type { SimulatedProcess } from './process.js';

/** The record that the coordinators of a cluster share, on a host of its own that never fails; the ways to it do. */
export class LeaseStore {
  private readonly record = new SimulatedLeaseRecord();

  constructor(
    private readonly network: Network,
    private readonly host: string,
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

  /** A request that was sent arrives at some time, whether its sender still waits or not. */
  private request<Answer>(process: SimulatedProcess, withinMs: number, run: () => Answer): Promise<Answer> {
    const { network, host } = this;
    return new Promise((resolve, reject) => {
      const timer = process.runtime.clock.after(withinMs, () =>
        reject(new SwitchyardError('LINK_LOST', `no answer from the lease's host within ${withinMs} ms`)),
      );
      network.travel(process.host, host, () => {
        const answer = run();
        network.travel(host, process.host, () =>
          process.deliver(() => {
            timer.cancel();
            resolve(answer);
          }),
        );
      });
    });
  }
}
