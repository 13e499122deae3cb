import { asSwitchyardError, type ErrorCode } from '../common/errors.js';
import { goodbyeMs, sleepOn } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { LeaderLease, LeaseRecord, StoredLease } from '../runtime/leader-lease.js';

export interface ElectionOptions {
  lease: LeaderLease;
  /** A name of this process that no other bears. */
  holder: string;
  /** Another coordinator may lead when the lease was not renewed for so long. */
  leaseMs: number;
  clock: Clock;
  log: Logger;
  /** The term of who leads, which may have risen since it began to. */
  term: () => number;
  /** From now on this process leads, in a term above all that were. */
  onLead: (term: number) => void;
  /** It does not lead any more; called before another one can. */
  onLost: () => void;
}

/** Looks within the lease. A request may take as long as it is from one to the next. */
const looks = 5;
/** Who leads stops this part of the lease after it asked for it: clocks that run this much apart harm nobody. */
const ownShare = 4 / 5;

/**
 * Whether this coordinator leads. All times are of the monotonic clock of who judges: who leads counts from before its request was sent, the others from when they
 * saw the record change. So of two that lead the first has stopped, however wall clocks jump and messages are late.
 */
export class Election {
  private readonly timer: Timer;
  private fence: Timer | null = null;
  /** The look under way. */
  private look: Promise<void> | null = null;
  private stored: StoredLease | null = null;
  /** When the record was first seen as it is. */
  private seenAtMs = Number.NEGATIVE_INFINITY;
  /** When it was read or written last. */
  private reachedAtMs = Number.NEGATIVE_INFINITY;
  private leadsUntilMs = Number.NEGATIVE_INFINITY;
  private leading = false;
  private stopped = false;
  /** Codes of failures since the lease was reached last: each is told once. */
  private readonly failuresTold = new Set<ErrorCode>();

  /** `address`: host:port at which others reach this coordinator. */
  constructor(
    private readonly address: string,
    private readonly options: ElectionOptions,
  ) {
    this.timer = options.clock.every(this.everyMs, () => this.lookAgain()).unref();
    this.lookAgain();
  }

  /** Whether this process leads at this moment. */
  get leads(): boolean {
    return this.leading && this.now() < this.leadsUntilMs;
  }

  /** host:port of the coordinator that leads, as far as it is known; otherwise empty. */
  get leader(): string {
    if (this.stored === null || (this.isOwn(this.stored) && !this.leads)) return '';
    return this.stored.address;
  }

  /** Whether the lease could be read of late. */
  get inTouch(): boolean {
    return this.now() - this.reachedAtMs < this.options.leaseMs;
  }

  /** Gives up the lease, so that another coordinator leads at once; or leaves it, if that takes long. */
  async stop(): Promise<void> {
    if (this.stopped) return;
    this.stopped = true;
    this.timer.cancel();
    await Promise.race([this.release(), sleepOn(this.options.clock, goodbyeMs)]);
    this.lose('it stops');
    this.options.lease.close();
  }

  private async release(): Promise<void> {
    await this.look;
    const { leads, stored } = this;
    const term = this.options.term();
    this.lose('it stops');
    if (leads && stored !== null) {
      const record = { holder: '', address: '', term, leaseMs: stored.leaseMs };
      await this.options.lease
        .replace(stored.version, record, this.everyMs)
        .catch((error) => this.failed(error));
    }
  }

  private get everyMs(): number {
    return this.options.leaseMs / looks;
  }

  private now(): number {
    return this.options.clock.now();
  }

  private lookAgain(): void {
    this.look ??= this.ask()
      .then(
        () => this.reached(),
        (error) => this.failed(error),
      )
      .finally(() => {
        this.look = null;
      });
  }

  private async ask(): Promise<void> {
    const { lease } = this.options;
    const stored = await lease.read(this.everyMs);
    this.saw(stored);
    if (this.stopped) return;
    if (!this.isOwn(stored)) this.lose(`${stored?.address || 'nobody'} has the lease`);
    if (!this.isFree(stored)) return;
    const askedAtMs = this.now();
    const isRenewal = this.leads;
    const taken = await lease.replace(stored?.version ?? null, this.record(stored, isRenewal), this.everyMs);
    // Whoever was faster is seen at the next look.
    if (taken === null) return;
    this.saw(taken);
    // What was lost while it was renewed needs another term, which the next look takes.
    if (!isRenewal || this.leading) this.hold(taken.term, askedAtMs);
  }

  private isOwn(stored: StoredLease | null): boolean {
    return stored?.holder === this.options.holder;
  }

  private isFree(stored: StoredLease | null): boolean {
    if (stored === null || stored.holder === '' || this.isOwn(stored)) return true;
    return this.now() - this.seenAtMs >= stored.leaseMs;
  }

  private saw(stored: StoredLease | null): void {
    const nowMs = this.now();
    this.reachedAtMs = nowMs;
    if (stored === null || stored.version !== this.stored?.version) this.seenAtMs = nowMs;
    const before = this.stored?.holder;
    this.stored = stored;
    if (stored === null || stored.holder === before || this.isOwn(stored) || stored.holder === '') return;
    this.options.log.info({ event: 'follows', leader: stored.address, term: stored.term });
  }

  /** A term belongs to the time in which one process led without a break. */
  private record(stored: StoredLease | null, isRenewal: boolean): LeaseRecord {
    const { holder, leaseMs } = this.options;
    const before = stored?.term ?? 0;
    const term = isRenewal ? Math.max(before, this.options.term()) : before + 1;
    return { holder, address: this.address, term, leaseMs };
  }

  private hold(term: number, askedAtMs: number): void {
    const { leaseMs, clock, log, onLead } = this.options;
    this.leadsUntilMs = askedAtMs + leaseMs * ownShare;
    this.fence?.cancel();
    const leftMs = this.leadsUntilMs - this.now();
    if (this.stopped || leftMs <= 0) return;
    this.fence = clock.after(leftMs, () => this.lose('it could not be renewed in time')).unref();
    if (this.leading) return;
    this.leading = true;
    log.info({ event: 'leads', term });
    onLead(term);
  }

  private lose(reason: string): void {
    this.fence?.cancel();
    if (!this.leading) return;
    this.leading = false;
    if (!this.stopped) this.options.log.warn({ event: 'lease-lost', reason });
    this.options.onLost();
  }

  private reached(): void {
    if (this.failuresTold.size > 0) this.options.log.info({ event: 'lease-reached' });
    this.failuresTold.clear();
  }

  private failed(thrown: unknown): void {
    const { code, message } = asSwitchyardError(thrown);
    if (this.failuresTold.has(code)) return;
    this.failuresTold.add(code);
    this.options.log.warn({ event: 'lease-unreachable', code, reason: message });
  }
}
