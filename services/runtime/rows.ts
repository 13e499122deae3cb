import type { Addon } from '../../native/index.js';

/** What routers, workers and links do with slabs and rows; the addon in production, as native/index.ts describes it. */
export type RowOperations = Pick<
  Addon,
  | 'allocateSlab'
  | 'endView'
  | 'arenaStats'
  | 'copyIn'
  | 'copyOut'
  | 'findNonFinite'
  | 'createRoutingTable'
  | 'writeRouting'
  | 'readRouting'
  | 'routeRows'
  | 'regroupRows'
  | 'packRows'
  | 'combineRows'
  | 'reduceRows'
>;
