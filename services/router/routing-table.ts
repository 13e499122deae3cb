import type { RoutingBytes, RoutingFault, RoutingTable } from '../../native/index.js';
import { invalidArgument, type SwitchyardError } from '../common/errors.js';
import { routedExperts } from '../model/spec.js';
import type { RowOperations } from '../runtime/rows.js';
import { type BatchPlan, routingBytes } from './plan.js';

/** What a client calls the routing that it gives. */
export interface RoutingNames {
  experts: string;
  weights: string;
  /** Its numbers of experts are int32, not uint32. */
  signed: boolean;
}

const namesInChunks: RoutingNames = { experts: 'chunk.experts', weights: 'chunk.weights', signed: false };

/** Room for experts and weights of `tokens` tokens at all layers of the batch. */
export function createRoutingTable(
  rows: RowOperations,
  { layers, topK }: BatchPlan,
  tokens: number,
): RoutingTable {
  const experts = Uint32Array.from(layers, routedExperts);
  return rows.createRoutingTable({ tokens, topK, experts });
}

/** The part of `tokens` tokens from `first` on, as a view. */
export function sliceRouting(
  all: RoutingBytes,
  plan: BatchPlan,
  first: number,
  tokens: number,
): RoutingBytes {
  const perToken = routingBytes(plan) / 2;
  const slice = (bytes: Uint8Array) => bytes.subarray(first * perToken, (first + tokens) * perToken);
  return { experts: slice(all.experts), weights: slice(all.weights) };
}

/**
 * Puts given routing into a table, for the tokens from `first` on. `token`: the first one's place in the batch, for errors.
 * @throws INVALID_ARGUMENT naming the first entry that is wrong.
 */
export async function writeRouting(
  rows: RowOperations,
  table: RoutingTable,
  first: number,
  given: RoutingBytes,
  token: number,
  plan: BatchPlan,
  names = namesInChunks,
): Promise<void> {
  const fault = await rows.writeRouting({ table, first, ...given });
  if (fault !== null) throw wrongRouting(fault, token, plan, names);
}

/** The routing of `tokens` tokens from `first` on, as an answer carries it. */
export async function readRouting(
  rows: RowOperations,
  table: RoutingTable,
  first: number,
  tokens: number,
  plan: BatchPlan,
): Promise<{ experts: Buffer; weights: Buffer }> {
  const bytes = (tokens * routingBytes(plan)) / 2;
  const routing = { experts: Buffer.allocUnsafeSlow(bytes), weights: Buffer.allocUnsafeSlow(bytes) };
  await rows.readRouting({ table, first, ...routing });
  return routing;
}

function wrongRouting(
  { field, index, value }: RoutingFault,
  firstToken: number,
  { layers, topK }: BatchPlan,
  names: RoutingNames,
): SwitchyardError {
  const token = firstToken + Math.floor(index / (layers.length * topK));
  const at = layers[Math.floor(index / topK) % layers.length]!;
  const place = `${names[field]} of token ${token}, layer ${at.layer}, choice ${index % topK}`;
  if (field === 'weights') return invalidArgument(place, value, 'finite numbers');
  return invalidArgument(place, names.signed ? value | 0 : value, `0 to ${routedExperts(at) - 1}`);
}
