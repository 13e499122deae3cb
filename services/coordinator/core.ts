import { SwitchyardError } from '../common/errors.js';
import type { Caller } from '../runtime/duplex.js';
import type { LeaderLease } from '../runtime/leader-lease.js';
import type { Random } from '../runtime/random.js';
import { ControlService, type ControlServiceOptions } from './control-service.js';
import { Election } from './election.js';
import type { ControlStream } from './node-stream.js';

export interface CoordinatorCoreOptions extends Omit<ControlServiceOptions, 'term' | 'leads'> {
  /** Which coordinator leads; null: this is the only one, and it always does. */
  lease: LeaderLease | null;
  /** Another coordinator leads when the lease was not renewed for so long. */
  leaderLeaseMs: number;
  random: Random;
  /** Called when this coordinator begins to lead, and when it does not any more. */
  onLeading: () => void;
}

/**
 * A coordinator without servers. While it leads it has a control service of its own, which begins with what nodes say they hold and
 * ends with the lead; otherwise it names the coordinator that leads.
 */
export class CoordinatorCore {
  private service: ControlService | null = null;
  private election: Election | null = null;
  private stopping = false;

  constructor(private readonly options: CoordinatorCoreOptions) {
    if (options.lease === null) this.service = this.lead(1, () => true);
  }

  /** Stands for election. `address`: host:port at which others reach this coordinator. */
  start(address: string): void {
    const { lease, leaderLeaseMs, random, clock, log, onLeading } = this.options;
    if (lease === null) return;
    const election = new Election(address, {
      lease,
      holder: random.uuid(),
      leaseMs: leaderLeaseMs,
      clock,
      log,
      term: () => this.service?.cluster.term ?? 0,
      onLead: (term) => {
        this.service = this.lead(term, () => election.leads);
        onLeading();
      },
      onLost: () => {
        this.service?.close(this.stopping ? stoppingError() : this.notLeading());
        this.service = null;
        onLeading();
      },
    });
    this.election = election;
  }

  /** Null: it does not lead at this moment. */
  get leading(): ControlService | null {
    return this.service?.leads ? this.service : null;
  }

  /** Throws NOT_LEADING, which names who does. */
  get control(): ControlService {
    const { leading } = this;
    if (leading === null) throw this.notLeading();
    return leading;
  }

  /** host:port of the coordinator that leads, as far as another one does and is known; otherwise empty. */
  get leader(): string {
    return this.election?.leader ?? '';
  }

  /** Whether it leads, or stands by with a lease that it can read. */
  get inTouch(): boolean {
    return this.election === null ? this.service !== null : this.election.inTouch;
  }

  /** Takes a node's control stream. */
  accept(stream: ControlStream, caller: Caller): void {
    const { leading } = this;
    if (leading === null) stream.destroy(this.stopping ? stoppingError() : this.notLeading());
    else leading.accept(stream, caller);
  }

  readiness(): { ready: boolean; reason: string } {
    return this.leading?.readiness() ?? { ready: false, reason: this.notLeading().message };
  }

  /** Sends the members away, and lets another coordinator lead at once. */
  async stop(): Promise<void> {
    this.stopping = true;
    await this.election?.stop();
    this.service?.close(stoppingError());
  }

  private lead(term: number, leads: () => boolean): ControlService {
    return new ControlService({ ...this.options, term, leads });
  }

  private notLeading(): SwitchyardError {
    const { leader } = this;
    const who = leader === '' ? 'none is known that does' : `${leader} does`;
    return new SwitchyardError('NOT_LEADING', `this coordinator does not lead; ${who}`, { leader });
  }
}

function stoppingError(): SwitchyardError {
  return new SwitchyardError('DRAINING', 'the coordinator is stopping');
}
