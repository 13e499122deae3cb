import { expertsIn } from '../common/layer-experts.js';
import type { Member } from './membership.js';
import type { ClusterPlacement, RoutersUse } from './placement.js';

/** Whether batches may be under way at a router. */
export const isBusy = ({ router }: Member) => router === null || router.bytesInFlight > 0;

/** What routers use of the placements of a term, and which copies they hold of those before. */
export function routersUse(
  routers: readonly Member[],
  term: number,
  placement: ClusterPlacement,
): RoutersUse {
  const { experts } = placement;
  const held = new Set<string>();
  for (const { router } of routers) {
    if (router?.termInUse !== term) continue;
    for (const { worker, experts: named } of router.held)
      for (const one of expertsIn(named)) held.add(`${experts.indexOf(one)} ${placement.slotOf(worker)}`);
  }
  const isHeld = (expert: number, slot: number) => held.has(`${expert} ${slot}`);
  return { oldestInUse: oldestInUse(routers, term), isHeld };
}

/** The oldest epoch of this term that a router may use; 0: one may use an older term. */
function oldestInUse(routers: readonly Member[], term: number): number {
  return Math.min(
    ...routers.map(({ router, told }) => {
      if (router === null) return 0;
      if (router.termInUse === term) return router.epochInUse;
      const knowsNone = router.termInUse === 0 && told.epoch === 0;
      return knowsNone ? Number.POSITIVE_INFINITY : 0;
    }),
  );
}
