import { controlLimits, plainText } from '../common/control-limits.js';
import { SwitchyardError } from '../common/errors.js';
import type { LinkDescription } from '../common/generated/switchyard/v1/LinkDescription.js';
import type { LinkTraffic } from '../common/generated/switchyard/v1/LinkTraffic.js';
import type { NodeHello } from '../common/generated/switchyard/v1/NodeHello.js';
import type { RouterFigures } from '../common/generated/switchyard/v1/RouterFigures.js';
import type { RouterReport } from '../common/generated/switchyard/v1/RouterReport.js';
import type { WorkerReport } from '../common/generated/switchyard/v1/WorkerReport.js';
import { overdueMs, Standstill } from '../common/lease.js';
import { SpeedMeter } from '../placement/speeds.js';

/** However many die, no more of them are listed than the newest, and those that errors still name. */
const deadMembersMax = 64;

export interface MembershipOptions {
  /** A member silent for so long is dead. */
  leaseMs: number;
  /** How long a member that left is listed, and one that died. */
  leftKeptMs: number;
  deadKeptMs: number;
}

/** What is kept and may be shown of a hello. */
export type Hello = Omit<NodeHello, 'linkSecret' | 'held'>;

/** The experts that a worker has reported ready. */
export class ReadyExperts {
  count = 0;
  /** By number of the expert; empty as long as there is none. */
  private flags = new Uint8Array();

  has(index: number): boolean {
    return this.flags[index] === 1;
  }

  /** `indices`: below `total`, the number of experts of the model. */
  replace(indices: Iterable<number>, total: number): void {
    this.clear();
    for (const index of indices) {
      if (this.flags.length === 0) this.flags = new Uint8Array(total);
      if (!this.has(index)) this.count += 1;
      this.flags[index] = 1;
    }
  }

  /** Ascending. */
  *numbers(): Generator<number> {
    for (let index = 0; index < this.flags.length; index += 1) if (this.has(index)) yield index;
  }

  clear(): void {
    this.count = 0;
    this.flags = new Uint8Array();
  }
}

/** A node from its hello to its end. A node that joins again is another member. */
export interface Member {
  /** Without the secret. */
  readonly hello: Readonly<Hello>;
  /** Of a worker: of which the keys of its links are made. */
  readonly linkSecret: Uint8Array;
  /** Counts the joins of the cluster: tells apart two members of one name. */
  readonly incarnation: number;
  alive: boolean;
  /** It said goodbye: it finishes what it has, and takes no new work. */
  draining: boolean;
  /** Why it is dead or draining. */
  reason: string;
  /** Monotonic milliseconds of the last message. */
  heardAtMs: number;
  /** Monotonic milliseconds of its death; 0 while it lives. */
  endedAtMs: number;
  /** Of a worker: the assignments that it was told last and that its last report follows; 0: none. */
  assignment: number;
  acknowledged: number;
  /** Of a worker: it was told last that nobody waits for what it loads. */
  aside: boolean;
  /** Of a worker: since when no router reaches it, though it has experts, in monotonic milliseconds; null: one does, or nobody knows. */
  missedAtMs: number | null;
  /** Of a worker: in words, that no router has reached it for too long, and why; empty: that is not so. */
  unreached: string;
  /** The placement that it was told last; 0: none. */
  told: { term: number; epoch: number };
  readonly ready: ReadyExperts;
  worker: WorkerReport | null;
  /** Of a worker: of how fast it computes. */
  readonly meter: SpeedMeter;
  router: RouterReport | null;
  /** Of a router, as it reported them last. */
  links: readonly LinkDescription[];
  /** Of a router, since it joined: tokens that came, and rows that went to experts. */
  tokens: number;
  rows: number;
  /** Of a router: its batches at the last heartbeat; by worker, what travelled since the router's start. */
  batches: Pick<RouterFigures, 'batchesLive' | 'batches'>;
  readonly traffic: Map<string, LinkTraffic>;
}

/**
 * Who belongs to the cluster. The control stream is the lease: `end` when it breaks or the node says goodbye,
 * `expire` for streams that are silent. Times are monotonic milliseconds given by the caller.
 */
export class Membership {
  private readonly byKey = new Map<string, Member>();
  private joins = 0;
  /** Null: nobody has joined yet. */
  private standstill: Standstill | null = null;

  constructor(private readonly options: MembershipOptions) {}

  /** Throws NAME_TAKEN if a live node bears the name, RESOURCE_EXHAUSTED if there are too many. */
  join({ linkSecret, held: _, ...hello }: NodeHello, nowMs: number): Member {
    const key = `${hello.role}/${hello.name}`;
    const holder = this.byKey.get(key);
    if (holder?.alive === true) {
      throw new SwitchyardError(
        'NAME_TAKEN',
        `${hello.role.toLowerCase()} name is "${hello.name}", which the live node at ${holder.hello.address} (pid ${holder.hello.pid}) bears; allowed: a name that no live ${hello.role.toLowerCase()} has`,
        { name: hello.name, address: holder.hello.address },
      );
    }
    const { membersMax } = controlLimits;
    if (this.all().filter(({ alive }) => alive).length >= membersMax) {
      const text = `the cluster has ${membersMax} live nodes; allowed: at most ${membersMax}`;
      throw new SwitchyardError('RESOURCE_EXHAUSTED', text, { name: hello.name, allowed: membersMax });
    }
    this.standstill ??= new Standstill(nowMs);
    this.joins += 1;
    const member: Member = {
      hello,
      linkSecret,
      incarnation: this.joins,
      alive: true,
      draining: false,
      reason: '',
      heardAtMs: nowMs,
      endedAtMs: 0,
      assignment: 0,
      acknowledged: 0,
      aside: false,
      missedAtMs: null,
      unreached: '',
      told: { term: 0, epoch: 0 },
      ready: new ReadyExperts(),
      worker: null,
      meter: new SpeedMeter(),
      router: null,
      links: [],
      tokens: 0,
      rows: 0,
      batches: { batchesLive: 0, batches: [] },
      traffic: new Map(),
    };
    // Deleting first keeps the map in the order of joining.
    this.byKey.delete(key);
    this.byKey.set(key, member);
    return member;
  }

  /** A goodbye. The member lives, for its stream stands, and can be given nothing new. */
  leave(member: Member, reason: string): void {
    member.draining = true;
    member.reason = plainText(`leaving: ${reason}`);
  }

  /** Ends a member's life; does nothing for one that is dead already. Returns whether it lived. */
  end(member: Member, reason: string, nowMs: number): boolean {
    if (!member.alive) return false;
    member.alive = false;
    member.endedAtMs = nowMs;
    member.reason = member.draining ? member.reason.replace('leaving', 'left') : plainText(reason);
    member.ready.clear();
    return true;
  }

  /**
   * Forgets members that have been dead for long enough, or for longest where there are too many, and returns them. Those for which `isNeeded` holds stay.
   */
  forget(nowMs: number, isNeeded: (member: Member) => boolean): Member[] {
    const { leftKeptMs, deadKeptMs } = this.options;
    const dead = this.all().filter((member) => !member.alive && !isNeeded(member));
    dead.sort((a, b) => b.endedAtMs - a.endedAtMs);
    const old = dead.filter(({ draining, endedAtMs }, index) => {
      return index >= deadMembersMax || nowMs - endedAtMs > (draining ? leftKeptMs : deadKeptMs);
    });
    for (const { hello } of old) this.byKey.delete(`${hello.role}/${hello.name}`);
    return old;
  }

  /**
   * Ends every member whose heartbeat is overdue by more than the lease, and returns them. Call it often, at even times:
   * when the calls themselves were late, this process stood still, and the members get that time on top.
   */
  expire(nowMs: number, everyMs: number): Member[] {
    const { leaseMs } = this.options;
    const stoodMs = this.standstill?.look(nowMs, everyMs) ?? 0;
    const expired: Member[] = [];
    for (const member of this.byKey.values()) {
      if (!member.alive) continue;
      member.heardAtMs = Math.min(nowMs, member.heardAtMs + stoodMs);
      if (member.missedAtMs !== null) member.missedAtMs = Math.min(nowMs, member.missedAtMs + stoodMs);
      const lateMs = overdueMs(nowMs - member.heardAtMs, leaseMs);
      if (lateMs <= leaseMs) continue;
      const silence = `silent for ${Math.round(lateMs)} ms beyond its heartbeat`;
      this.end(member, `${silence}; allowed: ${leaseMs} ms`, nowMs);
      expired.push(member);
    }
    return expired;
  }

  /** In the order of joining, the dead included. */
  all(): Member[] {
    return [...this.byKey.values()];
  }

  /** Members that can be given work. */
  serving(role: 'WORKER' | 'ROUTER'): Member[] {
    return this.living(role).filter((member) => !member.draining);
  }

  living(role: 'WORKER' | 'ROUTER'): Member[] {
    return this.all().filter((member) => member.alive && member.hello.role === role);
  }

  find(role: 'WORKER' | 'ROUTER', name: string): Member | undefined {
    return this.byKey.get(`${role}/${name}`);
  }
}
