import type { Member } from './membership.js';
import type { ClusterPlacement } from './placement.js';

/** Workers that leave: each may once nobody needs anything of it. */
export class LeavingWorkers {
  /** Those that have been told that they may. */
  private readonly released = new Set<Member>();

  /** `copies`: of each expert at least, among those that stay. */
  constructor(
    private readonly placement: ClusterPlacement,
    private readonly copies: number,
  ) {}

  forget(member: Member): void {
    this.released.delete(member);
  }

  /** Whether a worker may end: nobody uses what it holds. */
  mayLeave(member: Member): boolean {
    return this.released.has(member);
  }

  /** Those of the living of which nobody needs anything any more, and that were not told so; they are to be told now. `placed`: experts have been placed. */
  release(living: readonly Member[], placed: boolean): Member[] {
    const free = living.filter(
      (member) => member.draining && !this.released.has(member) && (!placed || this.placement.isFree(member)),
    );
    for (const member of free) this.released.add(member);
    return free;
  }

  /** Whether nobody waits for what a worker has to load. */
  isSpare(member: Member, living: readonly Member[]): boolean {
    return this.placement.isSpare(member, this.slotsOfLeaving(living), this.copies);
  }

  /** Workers that were told to load aside what is waited for now. */
  hurried(living: readonly Member[]): Member[] {
    const leaving = this.slotsOfLeaving(living);
    return living.filter((member) => member.aside && !this.placement.isSpare(member, leaving, this.copies));
  }

  private slotsOfLeaving(living: readonly Member[]): Set<number> {
    const leaving = living.filter(({ draining }) => draining);
    return new Set(leaving.map(({ hello }) => this.placement.slotOf(hello.name)));
  }
}
