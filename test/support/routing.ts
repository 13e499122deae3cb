import { expect } from '@jest/globals';
import { oneCopyEach } from '../../bench/one-copy.js';
import {
  type GateWeights,
  native,
  type RoutedRows,
  type RoutingBytes,
  type RoutingTable,
  type Slab,
} from '../../native/index.js';

/** Experts and weights of the rows, [rows, topK]. */
export interface Choice {
  experts: Uint32Array;
  weights: Float32Array;
}

export interface GatedRows {
  rows: Slab;
  rowCount: number;
  gate: GateWeights;
  topK: number;
  /** How many more experts every row goes to. */
  shared?: number;
  norm?: { weight: Slab; epsilon: number; offset?: number } | null;
  bias?: Float32Array | null;
  weighted?: boolean;
  tokenIds?: Uint32Array | null;
}

/** What a table of one layer holds. */
export async function choiceOf(routing: RoutingTable, rowCount: number, topK: number): Promise<Choice> {
  const choice = { experts: new Uint32Array(rowCount * topK), weights: new Float32Array(rowCount * topK) };
  await native.readRouting({ table: routing, first: 0, ...bytesOf(choice) });
  return choice;
}

/** A view of a choice. */
export function bytesOf({ experts, weights }: Choice): RoutingBytes {
  return { experts: new Uint8Array(experts.buffer), weights: new Uint8Array(weights.buffer) };
}

/** A table of choices, [tokens, layers, topK]. `experts`: their number at each layer. */
export async function tableOf(experts: number[], choice: Choice, topK: number): Promise<RoutingTable> {
  const tokens = choice.experts.length / (experts.length * topK);
  const table = native.createRoutingTable({ tokens, topK, experts: Uint32Array.from(experts) });
  expect(await native.writeRouting({ table, first: 0, ...bytesOf(choice) })).toBeNull();
  return table;
}

/** The expert of each entry of a group. */
export function expertsOf(segments: Uint32Array): number[] {
  const experts: number[] = [];
  for (let i = 0; i < segments.length; i += 2)
    for (let entry = 0; entry < segments[i + 1]!; entry += 1) experts.push(segments[i]!);
  return experts;
}

/** Gates rows for one worker that has all experts, and tells what was chosen. The receiver owns what was routed. */
export async function gateRows(options: GatedRows): Promise<{ routed: RoutedRows; choice: Choice }> {
  const {
    rows,
    rowCount,
    gate,
    topK,
    shared = 0,
    norm = null,
    bias = null,
    weighted = false,
    tokenIds,
  } = options;
  const { experts, hidden } = gate;
  const routing = native.createRoutingTable({ tokens: rowCount, topK, experts: Uint32Array.of(experts) });
  const routed = await native.routeRows({
    rows,
    rowCount,
    hidden,
    norm,
    gate: { weights: gate, bias, tokenIds: tokenIds ?? null },
    table: { routing, layer: 0 },
    copies: oneCopyEach(new Uint32Array(experts + shared)),
    workers: 1,
    pace: null,
    limits: null,
    weighted,
  });
  const choice = await choiceOf(routing, rowCount, topK);
  routing.release();
  return { routed, choice };
}
