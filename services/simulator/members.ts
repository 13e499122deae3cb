import type { Member } from '../coordinator/membership.js';
import type { Leader, SimulatedCluster } from './cluster.js';
import type { SimulatedProcess } from './process.js';

/** How far clocks may be from true time; what looks and messages take. */
const clockSlack = 1.02;
const lateMs = 500;

/** A member whose process is silent ends when its lease does, and no member of whom the coordinator can hear. */
export class MembersJudged {
  private readonly ended = new WeakSet<Member>();

  constructor(
    private readonly cluster: SimulatedCluster,
    private readonly violated: (what: string) => void,
  ) {}

  check({ process, control }: Leader): void {
    if (process.state !== 'running') return;
    for (const member of control.cluster.members()) {
      const of = this.cluster.processOf(member.hello.name, member.hello.pid);
      if (of === undefined) continue;
      if (member.alive) this.checkAlive(member, of, process);
      else if (!this.ended.has(member)) this.checkEnded(member, of, process);
    }
  }

  private checkAlive({ hello }: Member, of: SimulatedProcess, by: SimulatedProcess): void {
    const { nowMs } = this.cluster.time;
    const sinceMs = this.silentSince(of, by);
    if (sinceMs === null) return;
    // A coordinator that stood still, or was cut off, could not hear what was said before; what it then heard counts from there.
    const healedMs = this.cluster.network.healedAt(of.host, by.host);
    const silentMs = nowMs - Math.max(sinceMs, by.resumedMs, healedMs);
    if (silentMs > this.silenceMsMax)
      this.violated(`${hello.name} is a live member, and was silent for ${Math.round(silentMs)} ms`);
  }

  private checkEnded(member: Member, of: SimulatedProcess, by: SimulatedProcess): void {
    this.ended.add(member);
    const { nowMs } = this.cluster.time;
    const sinceMs = nowMs - this.silenceMsMax;
    if (!member.reason.startsWith('silent') || of.stoodMs(sinceMs) > 0 || of.diedMs < nowMs) return;
    if (this.cluster.network.wasCut(of.host, by.host, sinceMs)) return;
    this.violated(`${member.hello.name} is given up as ${member.reason}, and could be heard all the time`);
  }

  /** A lease, and what its member may have had beside: a heartbeat, the coordinator's next look. */
  private get silenceMsMax(): number {
    const { leaseMs, heartbeatMs } = this.cluster.scenario;
    return (leaseMs + heartbeatMs + leaseMs / 10) * clockSlack + lateMs;
  }

  private silentSince(of: SimulatedProcess, by: SimulatedProcess): number | null {
    const since = [this.cluster.network.cutSince(of.host, by.host)];
    if (of.state === 'stopped') since.push(of.stoppedAtMs);
    if (of.state === 'dead') since.push(of.diedMs);
    const known = since.filter((ms) => ms !== null);
    return known.length === 0 ? null : Math.min(...known);
  }
}
