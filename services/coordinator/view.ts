import { plainText } from '../common/control-limits.js';
import type { ClusterViewInput } from '../common/generated/switchyard/v1/ClusterView.js';
import type { NodeDescriptionInput } from '../common/generated/switchyard/v1/NodeDescription.js';
import type { NodeFiguresInput } from '../common/generated/switchyard/v1/NodeFigures.js';
import type { ModelSpec } from '../model/spec.js';
import type { Member } from './membership.js';
import { weightBytes } from './memory.js';
import type { CopyCounts } from './placement.js';
import type { PlacementPlans } from './plans.js';

export interface ViewSource {
  term: number;
  members: readonly Member[];
  plans: PlacementPlans;
  model: ModelSpec;
}

/** What routers and operators see of the cluster, without the placement and without figures. */
export function clusterView(source: ViewSource): ClusterViewInput {
  const { term, members, plans, model } = source;
  const counts = plans.placement.counts();
  const memory = weightBytes(
    members.filter(({ alive }) => alive),
    model,
  );
  const reason = whyNotReady(source);
  return {
    term,
    epoch: plans.placement.epoch,
    ready: reason === '',
    reason,
    copies: plans.copiesMin,
    rebalanceLoads: plans.limits.loads,
    rebalanceBytesPerSecond: plans.limits.bytesPerSecond,
    nodes: members.map((member) => {
      const slot = member.hello.role === 'WORKER' ? plans.placement.slotOf(member.hello.name) : -1;
      const memoryBytes = memory.get(member) ?? member.hello.memoryBytes;
      return describeNode(member, memoryBytes, plans, (member.alive && counts[slot]) || null);
    }),
  };
}

/** What a node measures of itself. */
export function nodeFigures({ hello, worker, router, meter }: Member): NodeFiguresInput {
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
    sizes: [...meter.speed.sizes],
  };
}

/** In words, naming the first expert that cannot be computed and its worker; empty if there is none. */
function whyNotReady({ members, plans }: ViewSource): string {
  const { placement, started, workersExpected, lacking } = plans;
  if (!started) {
    const joined = members.filter(
      ({ hello, alive, draining }) => hello.role === 'WORKER' && alive && !draining,
    ).length;
    return `${joined} of the ${workersExpected} expected workers have joined, so no expert is placed yet`;
  }
  const missing = placement.missing();
  const [first] = missing;
  if (first === undefined) return '';
  const { layer, expert } = placement.experts.at(first);
  const worker = placement.workerFor(first);
  const member = members.find(({ hello }) => hello.role === 'WORKER' && hello.name === worker);
  const where = worker === null ? '' : ` on worker ${worker}`;
  const why = worker === null ? 'no worker has it' : whyNotHere(member);
  const room = placement.target[first]!.length === 0 && lacking !== null ? `; ${lacking.message}` : '';
  const text = `layer ${layer} expert ${expert}${where}: ${why}${room}`;
  return missing.length === 1
    ? text
    : `${text}; ${missing.length} of ${placement.experts.total} experts are not ready`;
}

function whyNotHere(worker: Member | undefined): string {
  if (worker === undefined) return 'the worker is not a member';
  if (!worker.alive) return `the worker is dead (${worker.reason})`;
  return worker.draining ? `the worker is ${worker.reason}` : 'not loaded yet';
}

/** `counts`: of a live worker's copies; null: none are placed there. */
function describeNode(
  member: Member,
  memoryBytes: number,
  plans: PlacementPlans,
  counts: CopyCounts | null,
): NodeDescriptionInput {
  const { hello } = member;
  const isWorker = hello.role === 'WORKER';
  const { state, reason } = nodeState(member, plans, counts);
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
    version: hello.version,
    memoryBytes: isWorker ? memoryBytes : 0,
    ...counts,
    mark: (isWorker && plans.marks.get(hello.name)) || 'NO_MARK',
  };
}

/** In words, that a router uses copies of placements before the latest for what it does not reach by that; empty: it does not. */
function whyBehind({ router, links }: Member): string {
  const workers = router!.held.map(({ worker }) => worker);
  if (workers.length === 0) return '';
  const missed = links.filter(({ transport }) => transport === 'NO_LINK');
  const why = missed.map(({ worker, reason }) => `no link to worker ${worker}: ${reason}`).join('; ');
  return plainText(`it goes on with copies at ${workers.join(', ')} that are to go: ${why}`);
}

function nodeState(
  member: Member,
  plans: PlacementPlans,
  counts: CopyCounts | null,
): { state: 'JOINING' | 'LOADING' | 'READY' | 'DRAINING' | 'DEAD'; reason: string } {
  if (!member.alive) return { state: 'DEAD', reason: member.reason };
  if (member.draining) return { state: 'DRAINING', reason: member.reason };
  if (member.hello.role === 'ROUTER') {
    const reason = member.router === null ? 'it has not reported yet' : member.router.notReady;
    return reason === '' ? { state: 'READY', reason: whyBehind(member) } : { state: 'JOINING', reason };
  }
  if (member.unreached !== '') return { state: 'JOINING', reason: member.unreached };
  if (!plans.started) return { state: 'READY', reason: 'no expert is placed yet' };
  const { loading, serving } = counts!;
  if (loading === 0) return { state: 'READY', reason: serving === 0 ? 'it has no experts' : '' };
  return { state: 'LOADING', reason: `${loading} of ${loading + serving} experts are not loaded yet` };
}
