import { plainText } from '../common/control-limits.js';
import type { Member, Membership } from './membership.js';

/** Longer than routers take to dial a worker anew, however often they failed before. */
const unreachedMsMax = 10_000;

/**
 * Looks whether routers reach the workers that have experts: one that none has reached for `unreachedMsMax` is to have none, although it lives, until
 * one reaches it. Returns the workers for which that has changed. As long as no router tells of a worker, nobody knows; while routers reach no worker at all,
 * it is not any worker that is to blame, and none could take the experts.
 */
export function lookAtReach(membership: Membership, nowMs: number): Member[] {
  const reached = new Set<string>();
  const missed = new Map<string, string>();
  for (const { hello, links } of membership.living('ROUTER'))
    for (const { worker, transport, reason } of links)
      if (transport !== 'NO_LINK') reached.add(worker);
      else if (!missed.has(worker)) missed.set(worker, `router ${hello.name}: ${reason}`);
  const workers = membership.living('WORKER');
  if (reached.size === 0) {
    // Each gets all of its time once others are reached again: links are not made all at once.
    for (const member of workers) if (member.missedAtMs !== null) member.missedAtMs = nowMs;
    return [];
  }
  return workers.filter((member) => {
    const why = reached.has(member.hello.name) ? undefined : missed.get(member.hello.name);
    // What it may serve it must have: until then it may still be opening its model.
    const isMissed = why !== undefined && (member.ready.count > 0 || member.unreached !== '');
    member.missedAtMs = isMissed ? (member.missedAtMs ?? nowMs) : null;
    const was = member.unreached;
    if (member.missedAtMs === null) {
      if (reached.has(member.hello.name)) member.unreached = '';
    } else if (was === '' && nowMs - member.missedAtMs >= unreachedMsMax) {
      member.unreached = plainText(`no router reaches it; ${why}`);
    }
    return member.unreached !== was;
  });
}
