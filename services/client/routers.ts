import { hostname } from 'node:os';
import { SwitchyardError } from '../common/errors.js';
import type { ClusterState } from '../common/generated/switchyard/v1/ClusterState.js';
import type { InferenceClient } from '../common/generated/switchyard/v1/Inference.js';
import type { RouterDescription } from '../common/generated/switchyard/v1/RouterDescription.js';
import { type Failure, tellEach } from './all-failed.js';
import type { Connections } from './connections.js';

/** A router, over a connection that stands. */
export interface ReachedRouter extends RouterDescription {
  inference: InferenceClient;
}

const routersThatAre = (wanted: 'READY' | 'JOINING', { routers }: ClusterState) =>
  routers.filter(({ state }) => state === wanted);

/** Routers that are ready; if none is, those that hold batches until they are. */
export function openRouters(state: ClusterState): RouterDescription[] {
  const ready = routersThatAre('READY', state);
  return ready.length > 0 ? ready : routersThatAre('JOINING', state);
}

/** In words; empty: every expert is on a live worker, and `routers` routers take batches. */
export function whyNotReady(state: ClusterState | null, routers: number): string {
  if (state === null) return 'nothing is known of it';
  if (!state.ready) return state.reason;
  const ready = routersThatAre('READY', state).length;
  return ready < routers ? `${ready} of ${routers} routers are ready` : '';
}

/**
 * `wanted` of the routers, or as many as can be reached: those on this host first, then the others, each group from its
 * `turn`th on. Rejects with NOT_READY if there is none.
 */
export async function reachRouters(
  routers: readonly RouterDescription[],
  connections: Connections,
  wanted: number,
  turn: number,
): Promise<ReachedRouter[]> {
  const order = nearestFirst(routers, turn);
  const first = await reachSome(order, wanted, ({ address }) => connections.to(address));
  if (first.reached.length > 0) return first.reached;
  // Before the batch fails, those that were not reached a moment ago are tried again.
  const again = await reachSome(order, wanted, ({ address }) => connections.to(address, true));
  if (again.reached.length > 0) return again.reached;
  throw unreachable(order, again.failures);
}

async function reachSome(
  order: readonly RouterDescription[],
  wanted: number,
  reach: (router: RouterDescription) => Promise<InferenceClient>,
): Promise<{ reached: ReachedRouter[]; failures: Failure[] }> {
  const reached: ReachedRouter[] = [];
  const failures: Failure[] = [];
  for (let next = 0; next < order.length && reached.length < wanted; ) {
    const tried = order.slice(next, next + wanted - reached.length);
    next += tried.length;
    const results = await Promise.allSettled(tried.map(reach));
    for (const [index, result] of results.entries()) {
      const router = tried[index]!;
      if (result.status === 'fulfilled') reached.push({ ...router, inference: result.value });
      else failures.push({ address: router.address, error: result.reason });
    }
  }
  return { reached, failures };
}

/** Whether a router runs on this host, whose name may change while the process runs. */
export function isNear({ host }: RouterDescription): boolean {
  return host === hostname();
}

function nearestFirst(routers: readonly RouterDescription[], turn: number): RouterDescription[] {
  return [true, false].flatMap((near) => {
    const group = routers.filter((router) => isNear(router) === near);
    return group.map((_, index) => group[(turn + index) % group.length]!);
  });
}

/** The addresses came from the nodes, so the mend may be there. */
function unreachable(routers: readonly RouterDescription[], failures: readonly Failure[]): SwitchyardError {
  const [{ name, address }] = routers as [RouterDescription];
  const hint =
    routers.length === 1
      ? `router ${name} advertises this address: if it is not the one by which its clients reach it, start that node`
      : 'routers advertise these addresses: if they are not those by which their clients reach them, start those nodes';
  const text = `no router can be reached: ${tellEach(failures)}; ${hint} with another --advertise-host`;
  return new SwitchyardError('NOT_READY', text, { router: name, address }, { cause: failures[0]!.error });
}
