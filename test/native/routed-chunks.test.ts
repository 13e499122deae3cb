import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { oneCopyEach } from '../../bench/one-copy.js';
import {
  type ExpertCopies,
  type GateWeights,
  type GroupLimits,
  native,
  type RoutingSpec,
  type RowGroup,
  type Slab,
  type WorkerPace,
} from '../../native/index.js';
import { type Choice, choiceOf, expertsOf, tableOf } from '../support/routing.js';
import { expectBf16, gateOf, keep, routeGiven } from './routing-support.js';
import { rounded, slabOf, someValues, valuesOf } from './support.js';

interface Cut {
  worker: number;
  tokens: number[];
  /** Slots in the order of experts, then tokens. */
  slots: number[];
}

/** Groups in plain words: by worker, then by token, as many tokens as the limits take. */
function groupsOf(
  { experts }: Choice,
  topK: number,
  workerOf: Uint32Array,
  limits: GroupLimits | null,
): Cut[] {
  const workers = Math.max(...workerOf) + 1;
  const cuts: Cut[] = [];
  for (let worker = 0; worker < workers; worker += 1) {
    let current: Cut | null = null;
    for (let token = 0; token < experts.length / topK; token += 1) {
      const own = Array.from({ length: topK }, (_, choice) => token * topK + choice);
      const slots = own.filter((slot) => workerOf[experts[slot]!] === worker);
      if (slots.length === 0) continue;
      const rows = (current?.tokens.length ?? 0) + 1;
      const entries = (current?.slots.length ?? 0) + slots.length;
      const fits =
        limits === null ||
        (rows <= limits.rowsMax[worker]! &&
          entries <= limits.entriesMax[worker]! &&
          rows * limits.rowCost + entries * limits.entryCost <= limits.costMax[worker]!);
      if (current === null || !fits) {
        current = { worker, tokens: [], slots: [] };
        cuts.push(current);
      }
      current.tokens.push(token);
      current.slots.push(...slots);
    }
  }
  for (const { slots } of cuts) slots.sort((a, b) => experts[a]! - experts[b]! || a - b);
  return cuts;
}

const spec = fc.record({
  score: fc.constantFrom('softmax' as const, 'sigmoid' as const),
  renormalise: fc.boolean(),
  scale: fc.constantFrom(1, 2.5),
  groups: fc.constantFrom(1, 2, 4),
  groupsChosen: fc.constantFrom(1, 2, 4),
  groupScore: fc.constantFrom('max' as const, 'top2' as const),
  masked: fc.constantFrom('zero' as const, 'negative-infinity' as const),
});

const wanted = fc.record({
  spec,
  topK: fc.integer({ min: 1, max: 3 }),
  hidden: fc.constantFrom(1, 7, 16, 65),
  rowCount: fc.integer({ min: 1, max: 110 }),
  seed: fc.nat(1000),
  /** Whose experts are where. */
  workerOf: fc.array(fc.nat(3), { minLength: 12, maxLength: 12 }),
  given: fc.boolean(),
  normed: fc.boolean(),
  weighted: fc.boolean(),
  biased: fc.boolean(),
  spoiled: fc.uniqueArray(fc.nat(109), { maxLength: 4 }),
  cuts: fc.option(
    fc.record({ rows: fc.integer({ min: 1, max: 40 }), entries: fc.integer({ min: 3, max: 60 }) }),
  ),
});
type Wanted = typeof wanted extends fc.Arbitrary<infer T> ? T : never;

const expertCount = 12;

function limitsOf({ cuts }: Wanted): GroupLimits | null {
  if (cuts === null) return null;
  const all = (value: number) => new Float64Array(4).fill(value);
  const cost = cuts.rows + 3 * cuts.entries;
  return {
    rowsMax: all(cuts.rows),
    entriesMax: all(cuts.entries),
    costMax: all(Math.max(4, cost / 2 + 3)),
    rowCost: 1,
    entryCost: 1,
  };
}

/** A chunk with a choice given for it, or made by a gate, at the second of two layers. */
class Case {
  readonly values: number[];
  readonly rows: Slab;
  private readonly gate: GateWeights;

  constructor(private readonly wanted: Wanted) {
    const { rowCount, hidden, seed, spoiled, spec, topK } = wanted;
    this.values = someValues(rowCount * hidden, seed);
    for (const token of spoiled) if (token < rowCount) this.values[token * hidden] = Number.POSITIVE_INFINITY;
    this.rows = keep(slabOf(this.values));
    const groupsChosen = Math.min(spec.groupsChosen, spec.groups);
    const routing: RoutingSpec = { ...spec, groupsChosen, topK, weightOn: 'output' };
    this.gate = gateOf(someValues(expertCount * hidden, seed + 1), expertCount, routing);
  }

  async route(copies: ExpertCopies, limits: GroupLimits | null, weighted: boolean) {
    const { rowCount, hidden, topK, given, normed, biased, seed } = this.wanted;
    const choice = {
      experts: new Uint32Array(2 * rowCount * topK),
      weights: new Float32Array(2 * rowCount * topK),
    };
    for (const slot of choice.experts.keys()) {
      choice.experts[slot] = (Math.floor(slot / topK) * (seed + 1) + (slot % topK)) % expertCount;
      choice.weights[slot] = ((slot * 7) % 16) / 16 - 0.25;
    }
    const table = keep(await tableOf([expertCount, expertCount], choice, topK));
    const bias = biased ? Float32Array.from({ length: expertCount }, (_, i) => ((i * 5) % 7) / 10) : null;
    const routed = await native.routeRows({
      rows: this.rows,
      rowCount,
      hidden,
      norm: normed ? { weight: keep(slabOf(someValues(hidden, 9))), epsilon: 1e-5 } : null,
      gate: given ? null : { weights: this.gate, bias },
      table: { routing: table, layer: 1 },
      copies,
      pace: null,
      workers: 4,
      limits,
      weighted,
    });
    keep(routed);
    if (routed.normed) keep(routed.normed);
    const all = await choiceOf(table, rowCount, 2 * topK);
    return { routed, choice: layerOf(all, 1, topK), before: layerOf(all, 0, topK), made: choice };
  }
}

/** One of two layers. */
function layerOf({ experts, weights }: Choice, layer: number, topK: number): Choice {
  const own = (_: number, slot: number) => Math.floor(slot / topK) % 2 === layer;
  return { experts: experts.filter(own), weights: weights.filter(own) };
}

/** One result of each slot, so that it is known where it went. */
function resultOf(slot: number, hidden: number): number[] {
  return Array.from({ length: hidden }, (_, i) => rounded(((slot * 31 + i * 17) % 64) / 32 - 1));
}

describe('a chunk that is routed, whatever the options', () => {
  test('is grouped as plain words say, and every result finds its place', async () => {
    await fc.assert(
      fc.asyncProperty(wanted, async (drawn) => {
        const { topK, hidden, rowCount, given, normed, weighted } = drawn;
        const one = new Case(drawn);
        const workerOf = Uint32Array.from(drawn.workerOf);
        const limits = limitsOf(drawn);
        const { routed, choice, before, made } = await one.route(oneCopyEach(workerOf), limits, weighted);
        expect(before).toEqual(layerOf(made, 0, topK));
        if (given) expect(choice).toEqual(layerOf(made, 1, topK));
        expect(routed.normed === null).toBe(!normed);
        expect(routed.nonFinite).toBe(drawn.spoiled.filter((token) => token < rowCount).length);
        const counts = Array.from(
          { length: expertCount },
          (_, e) => choice.experts.filter((id) => id === e).length,
        );
        expect([...routed.counts]).toEqual(counts);

        const expected = groupsOf(choice, topK, workerOf, limits);
        expect(routed.groups.map(({ worker, tokens }) => ({ worker, tokens: [...tokens] }))).toEqual(
          expected.map(({ worker, tokens }) => ({ worker, tokens })),
        );
        for (const [i, group] of routed.groups.entries()) {
          const { slots } = expected[i]!;
          expect(group.rowCount).toBe(group.tokens.length);
          expect(expertsOf(group.segments)).toEqual(slots.map((slot) => choice.experts[slot]));
          const tokens = [...group.rowIndices].map((index) => group.tokens[index]);
          expect(tokens).toEqual(slots.map((slot) => Math.floor(slot / topK)));
          const weights = slots.map((slot) => choice.weights[slot]);
          expect(group.weights && [...group.weights]).toEqual(weighted ? weights : null);
        }

        const exact = expected.map(({ slots }) =>
          keep(slabOf(slots.flatMap((slot) => resultOf(slot, hidden)))),
        );
        const combine = { routed, hidden, residual: null } as const;
        const summed = await native.combineRows({ ...combine, mode: 'exact', weighted: true, parts: exact });
        expectBf16(
          valuesOf(keep(summed.rows)),
          Array.from({ length: rowCount }, (_, token) => {
            const slots = Array.from({ length: topK }, (_, j) => token * topK + j);
            const results = slots.map((slot) => resultOf(slot, hidden));
            return results[0]!.map((_, i) =>
              slots.reduce((sum, slot, j) => sum + choice.weights[slot]! * results[j]![i]!, 0),
            );
          }).flat(),
        );
        const partial = expected.map(({ tokens, worker }) =>
          keep(slabOf(tokens.flatMap((token) => resultOf(token + worker, hidden)))),
        );
        const sums = await native.combineRows({
          ...combine,
          mode: 'partial',
          weighted: false,
          parts: partial,
        });
        const places = expected.flatMap(({ tokens, worker }) => tokens.map((token) => ({ token, worker })));
        expectBf16(
          valuesOf(keep(sums.rows)),
          Array.from({ length: rowCount }, (_, token) => {
            const own = places.filter((place) => place.token === token);
            const results = own.map(({ worker }) => resultOf(token + worker, hidden));
            return results[0]!.map((_, i) => results.reduce((sum, result) => sum + result[i]!, 0));
          }).flat(),
        );
        for (const held of [exact, partial].flat()) held.release();
      }),
      { numRuns: 100 },
    );
  }, 120_000);

  test('has the same choice and the same bits on other workers, in other cuts', async () => {
    await fc.assert(
      fc.asyncProperty(
        wanted,
        fc.array(fc.nat(3), { minLength: 12, maxLength: 12 }),
        async (drawn, others) => {
          const { topK, hidden } = drawn;
          const one = new Case(drawn);
          const answer = async (places: number[], limits: GroupLimits | null) => {
            const workerOf = Uint32Array.from(places);
            const { routed, choice } = await one.route(oneCopyEach(workerOf), limits, false);
            const parts = groupsOf(choice, topK, workerOf, limits).map(({ slots }) =>
              keep(slabOf(slots.flatMap((slot) => resultOf(slot, hidden)))),
            );
            const options = { routed, mode: 'exact', hidden, weighted: true, residual: one.rows } as const;
            const { rows, nonFinite } = await native.combineRows({ ...options, parts });
            return {
              choice,
              nonFinite,
              rows: [...keep(rows).view()],
              normed: routed.normed && [...routed.normed.view()],
            };
          };
          expect(await answer(others, limitsOf(drawn))).toEqual(await answer(drawn.workerOf, null));
        },
      ),
      { numRuns: 40 },
    );
  }, 120_000);
});

/** Up to three of four workers for each expert; at least `least`. */
const copiesOf = (least: number) =>
  fc
    .array(fc.uniqueArray(fc.nat(3), { minLength: least, maxLength: 3 }), { minLength: 12, maxLength: 12 })
    .map((lists): ExpertCopies => {
      let count = 0;
      return {
        offsets: Uint32Array.from([0, ...lists.map(({ length }) => (count += length))]),
        workers: Uint32Array.from(lists.flatMap((list) => list.sort((a, b) => a - b))),
      };
    });

/** The slots of a group, in the order of its entries. */
function slotsOf({ segments, rowIndices, tokens }: RowGroup, { experts }: Choice, topK: number): number[] {
  const wanted = expertsOf(segments);
  return Array.from(rowIndices, (row, entry) => {
    const first = tokens[row]! * topK;
    return first + experts.subarray(first, first + topK).indexOf(wanted[entry]!);
  });
}

describe('a chunk whose experts have several copies, or none', () => {
  const drawnCase = fc.record({
    wanted,
    first: copiesOf(0),
    next: copiesOf(0),
    last: copiesOf(1),
    again: fc.array(fc.boolean(), { minLength: 1, maxLength: 8 }),
    pace: fc.option(fc.array(fc.double({ min: 0.01, max: 1, noNaN: true }), { minLength: 4, maxLength: 4 })),
  });

  test('has every slot in one group, also after groups were put in the place of others, and the same sum', async () => {
    await fc.assert(
      fc.asyncProperty(drawnCase, async ({ wanted: drawn, first, next, last, again, pace: seconds }) => {
        const { topK, hidden, rowCount } = drawn;
        const one = new Case(drawn);
        const limits = limitsOf(drawn);
        const { routed, choice } = await one.route(first, limits, true);
        const groups: (RowGroup | null)[] = [...routed.groups];
        const pace = seconds && {
          secondsQueued: new Float64Array(4),
          secondsPerRow: Float64Array.from(seconds),
        };
        const regroup = async (copies: ExpertCopies, chosen: (group: RowGroup, at: number) => boolean) => {
          const calls = groups.flatMap((group, at) => (group && chosen(group, at) ? [at] : []));
          const targets = { copies, workers: 4, pace, limits };
          await Promise.all(
            calls.map(async (group) => {
              const made = await native.regroupRows({ routed, group, ...targets });
              for (const [i, one] of made.groups.entries()) groups[made.first + i] = one;
              const before = slotsOf(groups[group]!, choice, topK);
              const after = made.groups.flatMap((one) => slotsOf(one, choice, topK));
              expect(after.sort((a, b) => a - b)).toEqual(before.sort((a, b) => a - b));
              groups[group] = null;
            }),
          );
          return calls;
        };
        const superseded = await regroup(next, (_, at) => again[at % again.length]!);
        await regroup(last, ({ worker }) => worker === null);
        for (const group of groups) {
          if (group === null) continue;
          expect(group.worker).not.toBeNull();
          for (const expert of expertsOf(group.segments)) {
            const held = [first, next, last].flatMap(({ offsets, workers }) => [
              ...workers.subarray(offsets[expert]!, offsets[expert + 1]!),
            ]);
            expect(held).toContain(group.worker);
          }
        }
        const parts = groups.map((group) =>
          group === null
            ? null
            : keep(slabOf(slotsOf(group, choice, topK).flatMap((slot) => resultOf(slot, hidden)))),
        );
        const combine = { routed, hidden, residual: null, mode: 'exact', weighted: true } as const;
        const summed = await native.combineRows({ ...combine, parts });
        const results = Array.from({ length: rowCount * topK }, (_, slot) => resultOf(slot, hidden));
        expectBf16(
          valuesOf(keep(summed.rows)),
          Array.from({ length: rowCount * hidden }, (_, at) => {
            const token = Math.floor(at / hidden);
            const slots = Array.from({ length: topK }, (_, j) => token * topK + j);
            return slots.reduce((sum, slot) => sum + choice.weights[slot]! * results[slot]![at % hidden]!, 0);
          }),
        );
        const partial = groups.map(
          (group) => group && keep(slabOf(new Array(group.rowCount * hidden).fill(1))),
        );
        keep(
          (await native.combineRows({ ...combine, mode: 'partial', weighted: false, parts: partial })).rows,
        );
        if (superseded.length > 0) {
          const group = superseded[0]!;
          await expect(
            native.regroupRows({ routed, group, copies: last, workers: 4, pace: null, limits: null }),
          ).rejects.toMatchObject({
            code: 'INVALID_ARGUMENT',
            message: expect.stringContaining(`group is ${group}`),
          });
          const late = parts.with(group, keep(slabOf(new Array(rowCount * topK * hidden).fill(1))));
          await expect(native.combineRows({ ...combine, parts: late })).rejects.toMatchObject({
            code: 'INVALID_ARGUMENT',
            message: expect.stringContaining('other groups have taken its place'),
          });
        }
        for (const held of [...parts, ...partial]) held?.release();
      }),
      { numRuns: 100 },
    );
  }, 120_000);

  test('sends the rows of a shared expert to the worker that would have less', async () => {
    const [rowCount, hidden, topK] = [100, 8, 1];
    const experts = Uint32Array.from({ length: rowCount }, (_, token) => (token < 60 ? 0 : 1));
    const choice = { experts, weights: new Float32Array(rowCount) };
    // Expert 0 is on both workers, expert 1 on the second alone.
    const copies = { offsets: Uint32Array.of(0, 2, 3), workers: Uint32Array.of(0, 1, 1) };
    const rowsAt = async (pace: WorkerPace | null) => {
      const { groups } = await routeGiven({ rowCount, hidden, topK }, choice, {
        copies,
        pace,
        weighted: false,
      });
      return groups.map(({ worker, rowIndices }) => [worker, rowIndices.length]);
    };
    const paceOf = (queued: number[], perRow: number[]) => ({
      secondsQueued: Float64Array.from(queued),
      secondsPerRow: Float64Array.from(perRow),
    });
    expect(await rowsAt(null)).toEqual([
      [0, 50],
      [1, 50],
    ]);
    expect(await rowsAt(paceOf([20, 0], [1, 1]))).toEqual([
      [0, 40],
      [1, 60],
    ]);
    expect(await rowsAt(paceOf([0, 0], [3, 1]))).toEqual([
      [0, 25],
      [1, 75],
    ]);
    expect(await rowsAt(paceOf([500, 0], [1, 1]))).toEqual([[1, 100]]);
  });
});
