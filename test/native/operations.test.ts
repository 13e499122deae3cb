import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { afterEach, describe, expect, test } from '@jest/globals';
import { native, type RoutingSpec, type Slab } from '../../native/index.js';
import { addonPath } from '../../native/locate.js';
import { floatsOf, rounded, routing, slabOf, someValues, synthetic, valuesOf } from './support.js';

const slabs: Slab[] = [];

function rowsOf(values: ArrayLike<number>): Slab {
  const slab = slabOf(values);
  slabs.push(slab);
  return slab;
}

afterEach(() => {
  for (const slab of slabs.splice(0)) slab.release();
});

function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, index) => sum + value * b[index]!, 0);
}

function row(values: readonly number[], index: number, hidden: number): number[] {
  return values.slice(index * hidden, (index + 1) * hidden);
}

/** Equal up to one rounding to BF16: half a unit in the last of eight bits, and float32 noise. */
function expectBf16(actual: readonly number[], expected: readonly number[]): void {
  expect(actual).toHaveLength(expected.length);
  actual.forEach((value, index) => {
    expect(Math.abs(value - expected[index]!)).toBeLessThanOrEqual(Math.abs(expected[index]!) / 255 + 1e-6);
  });
}

describe('ingestRows', () => {
  test('copies bytes of any alignment to an offset and counts the rows that are not finite', async () => {
    const hidden = 5;
    const bytes = new Uint8Array(1 + 4 * hidden * 2);
    const source = bytes.subarray(1);
    for (let i = 0; i < source.length; i += 1) source[i] = (i * 7) % 64;
    source.set([0x80, 0x7f], 2 * hidden);
    source.set([0xc1, 0xff], 2 * hidden * 3 + 8);
    const target = native.allocateSlab(200);
    slabs.push(target);
    target.view().fill(0xee);
    expect(await native.ingestRows(source, target, 20, hidden)).toBe(2);
    const view = target.view();
    expect([...view.subarray(20, 20 + source.length)]).toEqual([...source]);
    expect(view.subarray(0, 20).every((byte) => byte === 0xee)).toBe(true);
    expect(view.subarray(20 + source.length).every((byte) => byte === 0xee)).toBe(true);
  });
});

describe('rows from slab to slab and out', () => {
  test('ingestRows copies part of a slab and counts the rows that are not finite', async () => {
    const hidden = 3;
    const values = someValues(10 * hidden, 3);
    values[4 * hidden] = Number.POSITIVE_INFINITY;
    values[9 * hidden] = Number.NaN;
    const source = rowsOf(values);
    const target = native.allocateSlab(5 * hidden * 2);
    slabs.push(target);
    target.view().fill(0);
    const range = { slab: source, byteOffset: 2 * hidden * 2, byteLength: 4 * hidden * 2 };
    expect(await native.ingestRows(range, target, hidden * 2, hidden)).toBe(1);
    const expected = source.view().subarray(2 * hidden * 2, 6 * hidden * 2);
    expect([...target.view()]).toEqual([...new Uint8Array(hidden * 2), ...expected]);
  });

  test('countNonFinite reads the first rows of a slab alone', async () => {
    const hidden = 130;
    const values = someValues(200 * hidden, 4);
    for (const row of [0, 120, 199]) values[row * hidden + (row % hidden)] = Number.NaN;
    const rows = rowsOf(values);
    expect(await native.countNonFinite(rows, 200, hidden)).toBe(3);
    expect(await native.countNonFinite(rows, 199, hidden)).toBe(2);
    expect(await native.countNonFinite(rows, 1, hidden)).toBe(1);
  });

  test('copyOut fills an array, even one that starts at an odd place', async () => {
    const source = rowsOf(someValues(500_000, 5));
    const whole = new Uint8Array(900_001);
    await native.copyOut(source, 6, whole.subarray(1));
    expect(Buffer.compare(whole.subarray(1), source.view().subarray(6, 900_006))).toBe(0);
    expect(whole[0]).toBe(0);
  });
});

describe('normalizeRows', () => {
  test('divides by the root mean square and multiplies by the weight', async () => {
    const [rowCount, hidden, epsilon] = [150, 24, 0.01];
    const values = someValues(rowCount * hidden, 1);
    const weight = someValues(hidden, 2);
    const output = await native.normalizeRows({
      rows: rowsOf(values),
      rowCount,
      hidden,
      weight: rowsOf(weight),
      epsilon,
    });
    slabs.push(output);
    const expected = values.map((value, index) => {
      const own = row(values, Math.floor(index / hidden), hidden);
      return (value / Math.sqrt(dot(own, own) / hidden + epsilon)) * weight[index % hidden]!;
    });
    expectBf16(valuesOf(output), expected);
  });
});

describe('gateRows', () => {
  const [rowCount, hidden, experts] = [130, 16, 6];
  const values = someValues(rowCount * hidden, 3);
  const weight = someValues(experts * hidden, 4);

  async function run(spec: RoutingSpec, bias: Float32Array | null) {
    const floats = floatsOf(weight);
    slabs.push(floats);
    const gate = native.createGate({
      weight: floats,
      experts,
      hidden,
      logitBias: null,
      selectionBias: null,
      routing: spec,
    });
    expect([gate.experts, gate.hidden]).toEqual([experts, hidden]);
    const result = await native.gateRows({ gate, rows: rowsOf(values), rowCount, bias });
    gate.release();
    return result;
  }

  function choose(index: number, bias: readonly number[]) {
    const own = row(values, index, hidden);
    const logits = Array.from({ length: experts }, (_, expert) => dot(own, row(weight, expert, hidden)));
    const sum = logits.reduce((total, logit) => total + Math.exp(logit), 0);
    const scores = logits.map((logit) => Math.exp(logit) / sum);
    const order = [...scores.keys()].sort((a, b) => scores[b]! + bias[b]! - scores[a]! - bias[a]!);
    const chosen = order.slice(0, 2);
    const total = scores[chosen[0]!]! + scores[chosen[1]!]!;
    return { chosen, weights: chosen.map((expert) => scores[expert]! / total) };
  }

  test.each([
    ['without bias', null],
    ['with the feedback bias', Float32Array.of(0.3, 0, -0.2, 0, 0.1, 0)],
  ])('chooses and weighs as softmax top-k says, %s', async (_, bias) => {
    const result = await run(routing, bias);
    const counts = new Array(experts).fill(0);
    for (let index = 0; index < rowCount; index += 1) {
      const { chosen, weights } = choose(index, bias ? [...bias] : new Array(experts).fill(0));
      expect([...result.experts.subarray(index * 2, index * 2 + 2)]).toEqual(chosen);
      result.weights.subarray(index * 2, index * 2 + 2).forEach((value, position) => {
        expect(value).toBeCloseTo(weights[position]!, 5);
      });
      for (const expert of chosen) counts[expert] += 1;
    }
    expect([...result.counts]).toEqual(counts);
  });
});

describe('groupRows and packRows', () => {
  test('send each row once per worker, with segments that lead back to every choice', async () => {
    const [rowCount, hidden, topK] = [300, 3, 2];
    const values = someValues(rowCount * hidden, 5);
    const rows = rowsOf(values);
    const workerOf = Uint32Array.of(0, 2, 0, 2);
    const experts = Uint32Array.from({ length: rowCount * topK }, (_, i) =>
      i % 2 === 0 ? Math.floor(i / 2) % 4 : (Math.floor(i / 2) * 3 + 1) % 4,
    );
    const weights = Float32Array.from({ length: rowCount * topK }, (_, i) => i + 0.5);
    const groups = await native.groupRows({
      rowCount,
      topK,
      experts,
      weights,
      workerOf,
      workers: 3,
      limits: null,
    });
    expect(groups.map((group) => group.worker)).toEqual([0, 2]);
    const seen = new Set<number>();
    for (const group of groups) {
      const slab = await native.packRows({ rows, hidden, indices: group.tokens, tailBytes: 100 });
      slabs.push(slab);
      expect(slab.byteLength).toBe(group.rowCount * hidden * 2);
      const packed = valuesOf(slab);
      expect(new Set(group.tokens).size).toBe(group.rowCount);
      group.tokens.forEach((token, index) => {
        expect(row(packed, index, hidden)).toEqual(row(values, token, hidden));
      });
      let entry = 0;
      for (let segment = 0; segment < group.segments.length; segment += 2) {
        const expert = group.segments[segment]!;
        expect(workerOf[expert]).toBe(group.worker);
        for (let i = 0; i < group.segments[segment + 1]!; i += 1, entry += 1) {
          const slot = group.slots[entry]!;
          expect(experts[slot]).toBe(expert);
          expect(group.weights[entry]).toBe(weights[slot]);
          expect(group.tokens[group.rowIndices[entry]!]).toBe(Math.floor(slot / topK));
          seen.add(slot);
        }
      }
      expect(entry).toBe(group.slots.length);
    }
    expect(seen.size).toBe(rowCount * topK);
  });
});

describe('combineRows and reduceRows', () => {
  const [rowCount, hidden, topK] = [200, 7, 2];
  const residual = someValues(rowCount * hidden, 6);
  const results = someValues(rowCount * topK * hidden, 7);
  const weights = Float32Array.from({ length: rowCount * topK }, (_, i) => rounded(0.25 + (i % 5) / 8));
  const even = Uint32Array.from({ length: rowCount }, (_, i) => i * topK);
  const odd = Uint32Array.from({ length: rowCount }, (_, i) => (rowCount - 1 - i) * topK + 1);
  const pick = (slots: Uint32Array) => rowsOf([...slots].flatMap((slot) => row(results, slot, hidden)));

  test('exact weighs each slot and adds the residual', async () => {
    const { rows: output, nonFinite } = await native.combineRows({
      mode: 'exact',
      rowCount,
      hidden,
      topK,
      weights,
      residual: rowsOf(residual),
      parts: [
        { rows: pick(odd), targets: odd },
        { rows: pick(even), targets: even },
      ],
    });
    slabs.push(output);
    expect(nonFinite).toBe(0);
    const expected = residual.map((value, index) => {
      const token = Math.floor(index / hidden);
      const at = (slot: number) => weights[slot]! * results[slot * hidden + (index % hidden)]!;
      return at(token * topK) + at(token * topK + 1) + value;
    });
    expectBf16(valuesOf(output), expected);
  });

  test('partial sums of the workers give the same layer', async () => {
    const reduce = (first: number) => {
      const slots = first === 0 ? even : odd;
      const rowIndices = Uint32Array.from(slots, (slot) => Math.floor(slot / topK));
      return native.reduceRows({
        rows: pick(slots),
        hidden,
        rowIndices,
        weights: Float32Array.from(slots, (slot) => weights[slot]!),
        outputRows: rowCount,
      });
    };
    const partial = [await reduce(0), await reduce(1)];
    slabs.push(...partial);
    const targets = Uint32Array.from({ length: rowCount }, (_, i) => i);
    const { rows: output, nonFinite } = await native.combineRows({
      mode: 'partial',
      rowCount,
      hidden,
      topK,
      weights: null,
      residual: null,
      parts: partial.map((rows) => ({ rows, targets })),
    });
    slabs.push(output);
    expect(nonFinite).toBe(0);
    const [first, second] = partial.map(valuesOf);
    expectBf16(
      first!,
      residual.map((_, index) => {
        const slot = Math.floor(index / hidden) * topK;
        return weights[slot]! * results[slot * hidden + (index % hidden)]!;
      }),
    );
    expectBf16(
      valuesOf(output),
      first!.map((value, index) => value + second![index]!),
    );
  });

  test('rows that become NaN or infinite are counted, and the first of them is found', async () => {
    const large = Float32Array.from(weights);
    for (const token of [70, 71, 199]) large[token * topK] = 3e38;
    const nan = Float32Array.from(residual);
    nan[5 * hidden + 6] = Number.NaN;
    const { rows: output, nonFinite } = await native.combineRows({
      mode: 'exact',
      rowCount,
      hidden,
      topK,
      weights: large,
      residual: rowsOf(nan),
      parts: [
        { rows: rowsOf(new Array(rowCount * hidden).fill(64)), targets: even },
        { rows: pick(odd), targets: odd },
      ],
    });
    slabs.push(output);
    expect(nonFinite).toBe(4);
    expect(await native.findNonFinite(output, 0, rowCount, hidden)).toBe(5);
    expect(await native.findNonFinite(output, 6, rowCount - 6, hidden)).toBe(70);
    expect(await native.findNonFinite(output, 72, 127, hidden)).toBeNull();
    expect(await native.countNonFinite(output, rowCount, hidden)).toBe(4);
  });

  test.each([
    ['a missing slot', [even.subarray(1), odd]],
    ['a slot given twice', [even, Uint32Array.from(odd, (slot, i) => (i === 3 ? 0 : slot))]],
  ])('%s is data loss, not zeros', async (_, targets) => {
    const parts = targets.map((slots) => ({ rows: pick(slots), targets: slots }));
    await expect(
      native.combineRows({ mode: 'exact', rowCount, hidden, topK, weights, residual: null, parts }),
    ).rejects.toMatchObject({ code: 'DATA_LOSS', operation: 'combineRows' });
  });
});

describe('synthesizeTokens and readTensor', () => {
  test('give the same values in whatever parts they are asked for', async () => {
    const options = { seed: 9, hidden: 40, skew: 1, topics: 8 };
    const all = await native.synthesizeTokens({ ...options, firstToken: 1000, count: 600 });
    const part = await native.synthesizeTokens({ ...options, firstToken: 1500, count: 20 });
    slabs.push(all, part);
    expect(valuesOf(part)).toEqual(valuesOf(all).slice(500 * 40, 520 * 40));
    const matrix = await native.readTensor(synthetic(1, 300, 2000));
    slabs.push(matrix);
    const values = valuesOf(matrix);
    expect(Math.min(...values.slice(0, 9999))).toBeGreaterThanOrEqual(-0.5);
    expect(values.reduce((sum, value) => sum + value * value, 0) / values.length).toBeCloseTo(0.25 / 3, 2);
  });
});

test('measureMemcpy gives a speed between a slow disk and ten times the fastest memory', async () => {
  const rate = await native.measureMemcpy(1 << 24);
  expect(rate).toBeGreaterThan(1e8);
  expect(rate).toBeLessThan(1e13);
});

test('describe names the processor and what is built in', () => {
  const found = native.describe();
  expect(found.isa).toContain('avx2');
  expect(found.cpu.length).toBeGreaterThan(0);
  expect(found.cores).toBeGreaterThanOrEqual(1);
  // The module lies beside the addon in a build with CUDA; whether it finds a device is the machine's matter.
  expect(found.cuda !== null).toBe(existsSync(join(dirname(addonPath()), 'switchyard_cuda.so')));
  if (found.cuda !== null) expect(found.cuda.problem === null).toBe(found.cuda.devices.length > 0);
});
