import type { ClusterViewInput } from '../common/generated/switchyard/v1/ClusterView.js';
import type { NodeDescriptionInput } from '../common/generated/switchyard/v1/NodeDescription.js';
import type { NodeFiguresInput } from '../common/generated/switchyard/v1/NodeFigures.js';
import type { ExpertOrder } from '../model/expert-order.js';
import type { Member } from './membership.js';
import type { Seats } from './placement.js';

export interface ViewSource {
  epoch: number;
  members: readonly Member[];
  experts: ExpertOrder;
  /** The seat of each expert. */
  seatOf: Uint32Array;
  seats: Seats;
}

/** A share of the experts, and how much of it can be computed. */
interface Share {
  holder: Member | undefined;
  experts: number;
  /** Experts that cannot be computed now, and the number of the first of them. */
  missing: number;
  firstMissing: number;
}

/** What routers and operators see of the cluster, without the placement and without figures. */
export function clusterView(source: ViewSource): ClusterViewInput {
  const shares = sharesOf(source);
  const shareOf = new Map(shares.map((share) => [share.holder, share]));
  const reason = whyNotReady(source, shares);
  return {
    term: 1,
    epoch: source.epoch,
    ready: reason === '',
    reason,
    nodes: source.members.map((member) => describeNode(member, shareOf.get(member) ?? null)),
  };
}

/** What a node measures of itself. */
export function nodeFigures({ hello, worker, router }: Member): NodeFiguresInput {
  const report = worker ?? router;
  return {
    role: hello.role,
    name: hello.name,
    rssBytes: report?.rssBytes ?? 0,
    eventLoopUtilization: report?.eventLoopUtilization ?? 0,
    load: worker?.load ?? null,
    rowsQueued: worker?.rowsQueued ?? 0,
    rowsComputed: worker?.rowsComputed ?? 0,
    computeSeconds: worker?.computeSeconds ?? 0,
    device: worker?.device ?? null,
  };
}

/** By seat. */
function sharesOf({ members, seatOf, seats }: ViewSource): Share[] {
  const workers = new Map<string, Member>();
  for (const member of members) if (member.hello.role === 'WORKER') workers.set(member.hello.name, member);
  const shares = seats.map(
    (name): Share => ({ holder: workers.get(name ?? ''), experts: 0, missing: 0, firstMissing: -1 }),
  );
  for (const [expert, seat] of seatOf.entries()) {
    const share = shares[seat]!;
    const { holder } = share;
    share.experts += 1;
    if (holder?.draining === false && holder.ready.has(expert)) continue;
    if (share.missing === 0) share.firstMissing = expert;
    share.missing += 1;
  }
  return shares;
}

/** In words, naming the first expert that cannot be computed and its worker; empty if there is none. */
function whyNotReady({ members, experts, seats, epoch }: ViewSource, shares: readonly Share[]): string {
  if (epoch === 0) {
    const joined = members.filter(
      ({ hello, alive, draining }) => hello.role === 'WORKER' && alive && !draining,
    ).length;
    return `${joined} of the ${seats.length} expected workers have joined, so no expert is placed yet`;
  }
  const missing = shares.reduce((sum, share) => sum + share.missing, 0);
  if (missing === 0) return '';
  const lacking = shares.filter((share) => share.missing > 0);
  const first = lacking.reduce((least, share) => (share.firstMissing < least.firstMissing ? share : least));
  const { layer, expert } = experts.at(first.firstMissing);
  const worker = seats[shares.indexOf(first)];
  const text = `layer ${layer} expert ${expert} on worker ${worker}: ${whyNotHere(first.holder)}`;
  return missing === 1 ? text : `${text}; ${missing} of ${experts.total} experts are not ready`;
}

function whyNotHere(worker: Member | undefined): string {
  if (worker === undefined) return 'the worker is not a member';
  if (!worker.alive) return `the worker is dead (${worker.reason})`;
  return worker.draining ? `the worker is ${worker.reason}` : 'not loaded yet';
}

/** `share`: what a worker must hold; null: it has no seat, or is no worker. */
function describeNode(member: Member, share: Share | null): NodeDescriptionInput {
  const { hello } = member;
  const { state, reason } = nodeState(member, share);
  return {
    role: hello.role,
    name: hello.name,
    address: hello.address,
    host: hello.host,
    device: hello.device,
    threads: hello.threads,
    metricsUrl: hello.metricsUrl,
    pid: hello.pid,
    state,
    reason,
    experts: member.ready.count,
    links: member.alive ? [...member.links] : [],
    messageBytesMax: hello.messageBytesMax,
    memoryBytes: hello.role === 'WORKER' ? hello.memoryBytes : 0,
  };
}

function nodeState(
  member: Member,
  share: Share | null,
): { state: 'JOINING' | 'LOADING' | 'READY' | 'DRAINING' | 'DEAD'; reason: string } {
  if (!member.alive) return { state: 'DEAD', reason: member.reason };
  if (member.draining) return { state: 'DRAINING', reason: member.reason };
  if (member.hello.role === 'ROUTER') {
    const reason = member.router === null ? 'it has not reported yet' : member.router.notReady;
    return { state: reason === '' ? 'READY' : 'JOINING', reason };
  }
  if (share === null) return { state: 'READY', reason: 'no share of the experts is open' };
  if (share.missing === 0) return { state: 'READY', reason: '' };
  return { state: 'LOADING', reason: `${share.missing} of ${share.experts} experts are not loaded yet` };
}
