import type { ClusterViewInput } from '../common/generated/switchyard/v1/ClusterView.js';
import type { NodeDescriptionInput } from '../common/generated/switchyard/v1/NodeDescription.js';
import type { Member } from './membership.js';
import { type ExpertPlace, expertKey, type Seats } from './placement.js';

export interface ViewSource {
  epoch: number;
  members: readonly Member[];
  places: readonly ExpertPlace[];
  seats: Seats;
}

/** What routers and operators see of the cluster. Placements name dead workers too, so that an error can name them. */
export function clusterView(source: ViewSource): ClusterViewInput {
  const workers = new Map<string, Member>();
  for (const member of source.members) {
    if (member.hello.role === 'WORKER') workers.set(member.hello.name, member);
  }
  const seatExperts = source.seats.map(() => [] as ExpertPlace[]);
  for (const place of source.places) seatExperts[place.seat]!.push(place);
  const reason = whyNotReady(source, workers);
  return {
    epoch: source.epoch,
    ready: reason === '',
    reason,
    nodes: source.members.map((member) => {
      const seat = member.hello.role === 'WORKER' ? source.seats.indexOf(member.hello.name) : -1;
      return describeNode(member, seatExperts[seat] ?? null);
    }),
    placements: source.places.map(({ layer, expert, seat }) => {
      const worker = source.seats[seat] ?? null;
      return { layer, expert, workers: worker === null ? [] : [worker] };
    }),
  };
}

/** In words, naming the first expert that cannot be computed and its worker; empty if there is none. */
function whyNotReady({ places, seats }: ViewSource, workers: ReadonlyMap<string, Member>): string {
  const missing = seats.filter((holder) => holder === null).length;
  if (missing === seats.length) {
    const joined = [...workers.values()].filter((member) => member.alive && !member.draining).length;
    return `${joined} of the ${seats.length} expected workers have joined, so no expert is placed yet`;
  }
  let first = '';
  let count = 0;
  for (const place of places) {
    const worker = workers.get(seats[place.seat] ?? '');
    const problem = whyNotHere(place, worker);
    if (problem === '') continue;
    count += 1;
    if (first === '')
      first = `layer ${place.layer} expert ${place.expert} on worker ${seats[place.seat]}: ${problem}`;
  }
  if (count <= 1) return first;
  return `${first}; ${count} of ${places.length} experts are not ready`;
}

function whyNotHere(place: ExpertPlace, worker: Member | undefined): string {
  if (worker === undefined) return 'the worker is not a member';
  if (!worker.alive) return `the worker is dead (${worker.reason})`;
  if (worker.draining) return `the worker is ${worker.reason}`;
  return worker.ready.has(expertKey(place.layer, place.expert)) ? '' : 'not loaded yet';
}

/** `experts`: what a worker must hold; null: it has no seat, or is no worker. */
function describeNode(member: Member, experts: readonly ExpertPlace[] | null): NodeDescriptionInput {
  const { hello } = member;
  const report = member.worker ?? member.router;
  const { state, reason } = nodeState(member, experts);
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
    experts: member.alive ? member.ready.size : 0,
    load: member.worker?.load ?? null,
    rssBytes: report?.rssBytes ?? 0,
    eventLoopUtilization: report?.eventLoopUtilization ?? 0,
    links: member.alive ? [...member.links] : [],
    rowsQueued: member.worker?.queues.reduce((sum, { rowsQueued }) => sum + rowsQueued, 0) ?? 0,
    deviceFigures: member.worker?.device ?? null,
    messageBytesMax: hello.messageBytesMax,
  };
}

function nodeState(
  member: Member,
  experts: readonly ExpertPlace[] | null,
): { state: 'JOINING' | 'LOADING' | 'READY' | 'DRAINING' | 'DEAD'; reason: string } {
  if (!member.alive) return { state: 'DEAD', reason: member.reason };
  if (member.draining) return { state: 'DRAINING', reason: member.reason };
  if (member.hello.role === 'ROUTER') {
    const reason = member.router === null ? 'it has not reported yet' : member.router.notReady;
    return { state: reason === '' ? 'READY' : 'JOINING', reason };
  }
  if (experts === null) return { state: 'READY', reason: 'no share of the experts is open' };
  const missing = experts.filter(({ layer, expert }) => !member.ready.has(expertKey(layer, expert))).length;
  if (missing === 0) return { state: 'READY', reason: '' };
  return { state: 'LOADING', reason: `${missing} of ${experts.length} experts are not loaded yet` };
}
