import { hostname } from 'node:os';
import { SwitchyardError } from '../common/errors.js';
import type { ClusterState } from '../common/generated/switchyard/v1/ClusterState.js';
import type { InferenceClient } from '../common/generated/switchyard/v1/Inference.js';
import type { RouterDescription } from '../common/generated/switchyard/v1/RouterDescription.js';
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
  const reached = await reachSome(order, wanted, ({ address }) => connections.to(address));
  if (reached.length > 0) return reached;
  // Before the batch fails, those that were not reached a moment ago are tried again.
  const failures: SwitchyardError[] = [];
  const again = await reachSome(order, wanted, async (router) => {
    try {
      return await connections.to(router.address, true);
    } catch (error) {
      failures.push(unreachable(router, error as SwitchyardError));
      throw error;
    }
  });
  if (again.length > 0) return again;
  throw failures[0];
}

async function reachSome(
  order: readonly RouterDescription[],
  wanted: number,
  reach: (router: RouterDescription) => Promise<InferenceClient>,
): Promise<ReachedRouter[]> {
  const reached: ReachedRouter[] = [];
  for (let next = 0; next < order.length && reached.length < wanted; ) {
    const tried = order.slice(next, next + wanted - reached.length);
    next += tried.length;
    const results = await Promise.allSettled(tried.map(reach));
    for (const [index, result] of results.entries()) {
      if (result.status === 'rejected') continue;
      reached.push({ ...tried[index]!, inference: result.value });
    }
  }
  return reached;
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

/** The address came from the node, so the mend may be there. */
function unreachable({ name, address }: RouterDescription, error: SwitchyardError): SwitchyardError {
  const text =
    `no router can be reached: ${error.message}; router ${name} advertises this address: if it is not the one ` +
    'by which its clients reach it, start that node with another --advertise-host';
  return new SwitchyardError('NOT_READY', text, { router: name, address }, { cause: error });
}
