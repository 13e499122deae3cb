import { isAddress } from '../common/address.js';
import { invalidArgument, SwitchyardError } from '../common/errors.js';
import type { LinkDescription } from '../common/generated/switchyard/v1/LinkDescription.js';
import type { NodeHello } from '../common/generated/switchyard/v1/NodeHello.js';
import type { RouterReport } from '../common/generated/switchyard/v1/RouterReport.js';
import type { WorkerReport } from '../common/generated/switchyard/v1/WorkerReport.js';
import { isNodeName, nodeNameAllowed } from '../common/node-name.js';
import { linkSecretBytes } from '../transport/link-key.js';

/** Dead members are listed, with the reason, until so many newer ones died. */
const deadMembersMax = 64;

/** What may be shown of a hello. */
export type Hello = Omit<NodeHello, 'linkSecret'>;

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
  /** Keys (`expertKey`) of the experts it has reported ready. */
  ready: ReadonlySet<number>;
  worker: WorkerReport | null;
  router: RouterReport | null;
  /** Of a router, as it reported them last. */
  links: readonly LinkDescription[];
}

/**
 * Who belongs to the cluster. The control stream is the lease: `end` when it breaks or the node says goodbye,
 * `expire` for streams that are silent. Times are monotonic milliseconds given by the caller.
 */
export class Membership {
  private readonly byKey = new Map<string, Member>();
  private joins = 0;
  private sweptAtMs: number | null = null;

  constructor(private readonly leaseMs: number) {}

  /** Throws INVALID_ARGUMENT for a hello that makes no sense, NAME_TAKEN if a live node bears the name. */
  join({ linkSecret, ...hello }: NodeHello, nowMs: number): Member {
    checkHello(hello);
    const secretBytes = hello.role === 'WORKER' ? linkSecretBytes : 0;
    if (linkSecret.byteLength !== secretBytes)
      throw invalidArgument('link_secret', `${linkSecret.byteLength} bytes`, `${secretBytes} bytes`);
    const key = `${hello.role}/${hello.name}`;
    const holder = this.byKey.get(key);
    if (holder?.alive === true) {
      throw new SwitchyardError(
        'NAME_TAKEN',
        `${hello.role.toLowerCase()} name is "${hello.name}", which the live node at ${holder.hello.address} (pid ${holder.hello.pid}) bears; allowed: a name that no live ${hello.role.toLowerCase()} has`,
        { name: hello.name, address: holder.hello.address },
      );
    }
    this.joins += 1;
    const member: Member = {
      hello,
      linkSecret,
      incarnation: this.joins,
      alive: true,
      draining: false,
      reason: '',
      heardAtMs: nowMs,
      ready: new Set(),
      worker: null,
      router: null,
      links: [],
    };
    // Deleting first keeps the map in the order of joining.
    this.byKey.delete(key);
    this.byKey.set(key, member);
    return member;
  }

  /** A goodbye. The member lives, for its stream stands, and can be given nothing new. */
  leave(member: Member, reason: string): void {
    member.draining = true;
    member.reason = `leaving: ${reason}`;
  }

  /** Ends a member's life; does nothing for one that is dead already. Returns whether it lived. */
  end(member: Member, reason: string): boolean {
    if (!member.alive) return false;
    member.alive = false;
    member.reason = member.draining ? member.reason.replace('leaving', 'left') : reason;
    member.ready = new Set();
    this.forgetOldDead();
    return true;
  }

  /**
   * Ends every member that has been silent for longer than the lease, and returns them. Call it often, at even times:
   * when the calls themselves were late, this process stood still, and the members get that time on top.
   */
  expire(nowMs: number, everyMs: number): Member[] {
    const lateMs = this.sweptAtMs === null ? 0 : nowMs - this.sweptAtMs - everyMs;
    this.sweptAtMs = nowMs;
    const expired: Member[] = [];
    for (const member of this.byKey.values()) {
      if (!member.alive) continue;
      if (lateMs > everyMs) member.heardAtMs = Math.min(nowMs, member.heardAtMs + lateMs);
      const silentMs = nowMs - member.heardAtMs;
      if (silentMs <= this.leaseMs) continue;
      this.end(member, `silent for ${Math.round(silentMs)} ms; allowed: ${this.leaseMs} ms`);
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

  private forgetOldDead(): void {
    const dead = [...this.byKey].filter(([, member]) => !member.alive);
    for (const [key] of dead.slice(0, Math.max(0, dead.length - deadMembersMax))) this.byKey.delete(key);
  }
}

function checkHello(hello: Hello): void {
  if (!isNodeName(hello.name)) throw invalidArgument('name', hello.name, nodeNameAllowed);
  if (!isAddress(hello.address)) {
    throw invalidArgument('address', hello.address, 'host:port, whose host --advertise-host gives');
  }
  for (const field of ['host', 'device', 'metricsUrl', 'modelFingerprint'] as const) {
    if (hello[field].length > 1024)
      throw invalidArgument(field, `${hello[field].slice(0, 32)}…`, 'at most 1024 characters');
  }
}
