import { expect, test } from '@jest/globals';
import fc from 'fast-check';
import { oneCopyEach } from '../../bench/one-copy.js';
import { native } from '../../native/index.js';
import { systemClock } from '../../services/runtime/system.js';
import { type Row, rowBytes } from '../../services/simulator/arithmetic.js';
import { groupSlots } from '../../services/simulator/group.js';
import { RowsOf, SimulatedGate, SimulatedRows } from '../../services/simulator/rows.js';
import { slabOf } from '../native/support.js';
import { tableOf } from '../support/routing.js';

/** Choices of two distinct experts for some rows, and a worker for each expert. */
const grouping = fc
  .record({
    rows: fc.integer({ min: 1, max: 40 }),
    experts: fc.integer({ min: 2, max: 9 }),
    workers: fc.integer({ min: 1, max: 5 }),
  })
  .chain(({ rows, experts, workers }) => {
    const all = Array.from({ length: experts }, (_, expert) => expert);
    const two = fc.shuffledSubarray(all, { minLength: 2, maxLength: 2 });
    const worker = fc.integer({ min: 0, max: workers - 1 });
    return fc.record({
      workers: fc.constant(workers),
      workerOf: fc.array(worker, { minLength: experts, maxLength: experts }),
      choices: fc.array(two, { minLength: rows, maxLength: rows }),
      rowsMax: fc.option(fc.integer({ min: 1, max: 8 })),
      weighted: fc.boolean(),
    });
  });

test('Rows are grouped as the addon groups them', async () => {
  await fc.assert(
    fc.asyncProperty(grouping, async ({ workers, workerOf, choices, rowsMax, weighted }) => {
      const experts = Uint32Array.from(choices.flat());
      const weights = Float32Array.from(experts, (_, index) => index + 1);
      const copies = oneCopyEach(Uint32Array.from(workerOf));
      const limits = rowsMax === null ? null : limitsOf(workers, rowsMax);
      const table = await tableOf([workerOf.length], { experts, weights }, 2);
      const rows = slabOf(new Float32Array(choices.length * 16));
      const routed = await native.routeRows({
        rows,
        rowCount: choices.length,
        hidden: 16,
        norm: null,
        gate: null,
        table: { routing: table, layer: 0 },
        copies,
        workers,
        pace: null,
        limits,
        weighted,
      });
      const choice = { experts, weights, topK: 2, weighted };
      const grouped = groupSlots(choice, { copies, workers, pace: null, limits }, experts.keys());
      expect(grouped.map(({ group }) => group)).toEqual(routed.groups);
      for (const handle of [routed, table, rows]) handle.release();
    }),
    { numRuns: 200 },
  );
});

function limitsOf(workers: number, rowsMax: number) {
  const all = (value: number) => new Float64Array(workers).fill(value);
  return { rowsMax: all(rowsMax), entriesMax: all(1e9), costMax: all(100), rowCost: 3, entryCost: 7 };
}

test('Every slot goes to one copy of its expert, at the worker that is done first, or to nobody where there is none', () => {
  const experts = Uint32Array.of(0, 1, 0, 2, 0, 1, 0, 3);
  const copies = { offsets: Uint32Array.of(0, 3, 4, 4, 5), workers: Uint32Array.of(0, 1, 2, 1, 2) };
  const pace = { secondsQueued: Float64Array.of(0, 0, 9), secondsPerRow: Float64Array.of(1, 1, 1) };
  const choices = { experts, weights: new Float32Array(8), topK: 2, weighted: false };
  const groups = groupSlots(choices, { copies, workers: 3, pace, limits: null }, experts.keys());
  expect(groups.map(({ group, slots }) => [group.worker, [...slots]])).toEqual([
    [0, [0, 2, 6]],
    [1, [4, 1, 5]],
    [2, [7]],
    [null, [3]],
  ]);
});

function rowsOperations(): SimulatedRows {
  return new SimulatedRows({ bytesLimit: 1 << 20, clock: systemClock, costs: { operation: () => 0 } });
}

async function routeSome(
  rows: SimulatedRows,
  combine: 'exact' | 'partial',
  spoil: (parts: RowsOf[]) => void,
) {
  const input = new RowsOf(rows.allocateSlab(6 * rowBytes));
  for (let token = 0; token < 6; token += 1) input.set(token, { a: token, b: 9 });
  const routed = await rows.routeRows({
    rows: input.slab,
    rowCount: 6,
    hidden: 4,
    norm: null,
    gate: { weights: new SimulatedGate(0, 4, 2), bias: null },
    table: null,
    copies: oneCopyEach(Uint32Array.of(0, 1, 0, 1)),
    workers: 2,
    pace: null,
    limits: null,
    weighted: true,
  });
  const parts = routed.groups.map((group) => {
    const part = new RowsOf(rows.allocateSlab(group.rowIndices.length * rowBytes));
    for (const [entry, row] of group.rowIndices.entries()) part.set(entry, input.get(group.tokens[row]!));
    return part;
  });
  spoil(parts);
  const slabs = await Promise.all(
    parts.map(({ slab }, index) => {
      const { rowIndices, weights, rowCount } = routed.groups[index]!;
      if (combine === 'exact') return slab;
      return rows.reduceRows({
        rows: slab,
        hidden: 4,
        rowIndices,
        weights: weights!,
        outputRows: rowCount,
      });
    }),
  );
  const combined = await rows.combineRows({
    routed,
    mode: combine,
    hidden: 4,
    weighted: combine === 'exact',
    residual: input.slab,
    parts: slabs,
  });
  const output = new RowsOf(combined.rows);
  return Array.from({ length: 6 }, (_, token): Row => output.get(token));
}

test('Sums are the same whether workers add up or the router does, and a wrong row shows', async () => {
  const exact = await routeSome(rowsOperations(), 'exact', () => {});
  expect(await routeSome(rowsOperations(), 'partial', () => {})).toEqual(exact);
  const spoilt = await routeSome(rowsOperations(), 'exact', ([part]) => part!.set(0, { a: 1, b: 1 }));
  expect(spoilt).not.toEqual(exact);
});

test('Slabs are counted until their last handle is released, and there is a limit', () => {
  const rows = rowsOperations();
  const slab = rows.allocateSlab(100);
  const shared = slab.share();
  slab.release();
  slab.release();
  expect(rows.arenaStats()).toMatchObject({ slabs: 1, bytesInUse: 100 });
  expect(() => slab.view()).toThrow(expect.objectContaining({ code: 'SLAB_RELEASED' }));
  shared.release();
  expect(rows.arenaStats()).toMatchObject({ slabs: 0, bytesInUse: 0 });
  expect(() => rows.allocateSlab(2 << 20)).toThrow(expect.objectContaining({ code: 'RESOURCE_EXHAUSTED' }));
});
