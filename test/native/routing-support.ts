import { afterEach, expect } from '@jest/globals';
import {
  type ExpertCopies,
  type GateWeights,
  native,
  type RoutedRows,
  type RoutingSpec,
  type WorkerPace,
} from '../../native/index.js';
import { type Choice, tableOf } from '../support/routing.js';
import { floatsOf, slabOf, someValues } from './support.js';

const held: { release(): void }[] = [];

export function keep<T extends { release(): void }>(one: T): T {
  held.push(one);
  return one;
}

afterEach(() => {
  for (const one of held.splice(0)) one.release();
});

export function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, index) => sum + value * b[index]!, 0);
}

export function row(values: readonly number[], index: number, hidden: number): number[] {
  return values.slice(index * hidden, (index + 1) * hidden);
}

/** Equal up to one rounding to BF16: half a unit in the last of eight bits, and float32 noise. */
export function expectBf16(actual: readonly number[], expected: readonly number[]): void {
  expect(actual).toHaveLength(expected.length);
  for (const [index, value] of actual.entries()) {
    const error = Math.abs(value - expected[index]!);
    if (!(error <= Math.abs(expected[index]!) / 255 + 1e-6))
      throw new Error(`${value} for ${expected[index]}`);
  }
}

export function gateOf(weight: number[], experts: number, spec: RoutingSpec): GateWeights {
  const floats = keep(floatsOf(weight));
  const hidden = weight.length / experts;
  const biases = { logitBias: null, selectionBias: null };
  return keep(native.createGate({ weight: floats, experts, hidden, ...biases, routing: spec }));
}

/** Routes rows to two workers by a choice of two experts that is given, [rowCount, topK]. */
export async function routeGiven(
  { rowCount, hidden, topK }: { rowCount: number; hidden: number; topK: number },
  choice: Choice,
  { copies, pace, weighted }: { copies: ExpertCopies; pace: WorkerPace | null; weighted: boolean },
): Promise<RoutedRows> {
  const routed = await native.routeRows({
    rows: keep(slabOf(someValues(rowCount * hidden, 1))),
    rowCount,
    hidden,
    norm: null,
    gate: null,
    table: { routing: keep(await tableOf([2], choice, topK)), layer: 0 },
    copies,
    pace,
    workers: 2,
    limits: null,
    weighted,
  });
  return keep(routed);
}
