import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { afterEach, describe, expect, test } from '@jest/globals';
import { native, type Slab } from '../../native/index.js';
import { addonPath } from '../../native/locate.js';
import { rounded, runScript, slabOf, someValues, synthetic, valuesOf } from './support.js';

const slabs: Slab[] = [];

function rowsOf(values: ArrayLike<number>): Slab {
  const slab = slabOf(values);
  slabs.push(slab);
  return slab;
}

afterEach(() => {
  for (const slab of slabs.splice(0)) slab.release();
});

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

test('operations that run at once, one after the other, keep no timer waiting', async () => {
  const target = native.allocateSlab(64);
  slabs.push(target);
  let fired = false;
  setTimeout(() => {
    fired = true;
  }, 1);
  const endMs = performance.now() + 10_000;
  while (!fired && performance.now() < endMs) await native.copyIn(new Uint8Array(64), target, 0);
  expect(fired).toBe(true);
});

describe('bytes into a slab and out', () => {
  test('copyIn takes bytes of any alignment to an offset', async () => {
    const bytes = new Uint8Array(42).map((_, i) => i * 7);
    const source = bytes.subarray(1);
    const target = native.allocateSlab(200);
    slabs.push(target);
    target.view().fill(0xee);
    await native.copyIn(source, target, 21);
    const view = target.view();
    expect([...view.subarray(21, 62)]).toEqual([...source]);
    expect(view.subarray(0, 21).every((byte) => byte === 0xee)).toBe(true);
    expect(view.subarray(62).every((byte) => byte === 0xee)).toBe(true);
  });

  test('copyIn takes part of a slab, however large', async () => {
    const source = await native.readTensor(synthetic(1, 1, 500_000));
    slabs.push(source);
    const target = native.allocateSlab(900_000);
    slabs.push(target);
    target.view().fill(0);
    await native.copyIn({ slab: source, byteOffset: 6, byteLength: 899_990 }, target, 5);
    const expected = source.view().subarray(6, 899_996);
    expect(Buffer.compare(target.view().subarray(5, 899_995), expected)).toBe(0);
    expect([...target.view().subarray(899_995)]).toEqual([0, 0, 0, 0, 0]);
  });

  test('copyOut fills an array, even one that starts at an odd place', async () => {
    const source = await native.readTensor(synthetic(2, 1, 500_000));
    slabs.push(source);
    const whole = new Uint8Array(900_001);
    await native.copyOut(source, 6, whole.subarray(1));
    expect(Buffer.compare(whole.subarray(1), source.view().subarray(6, 900_006))).toBe(0);
    expect(whole[0]).toBe(0);
  });
});

test('packRows copies rows side by side, and keeps room behind them', async () => {
  const hidden = 3;
  const values = someValues(300 * hidden, 5);
  const indices = Uint32Array.of(0, 7, 8, 299, 7);
  const slab = await native.packRows({ rows: rowsOf(values), hidden, indices, tailBytes: 100 });
  slabs.push(slab);
  expect(valuesOf(slab)).toEqual([...indices].flatMap((index) => row(values, index, hidden)));
});

test('reduceRows gives one weighted sum for each row of a token batch', async () => {
  const [rowCount, hidden] = [200, 7];
  const results = someValues(2 * rowCount * hidden, 7);
  const rowIndices = Uint32Array.from({ length: 2 * rowCount }, (_, i) =>
    i < rowCount ? i : 2 * rowCount - 1 - i,
  );
  const weights = Float32Array.from(rowIndices, (_, i) => rounded(0.25 + (i % 5) / 8));
  const output = await native.reduceRows({
    rows: rowsOf(results),
    hidden,
    rowIndices,
    weights,
    outputRows: rowCount,
  });
  slabs.push(output);
  const expected = new Array(rowCount * hidden).fill(0);
  for (const [entry, target] of rowIndices.entries()) {
    for (let i = 0; i < hidden; i += 1)
      expected[target * hidden + i] += weights[entry]! * results[entry * hidden + i]!;
  }
  expectBf16(valuesOf(output), expected);
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

test('describe names the instruction sets that experts can be computed with, and no other', async () => {
  const output = await runScript(`
    const names = ['avx2', 'avx512-bf16', 'amx-bf16'];
    const usable = names.filter((name) => {
      process.env.SWITCHYARD_CPU_ISA = name;
      try {
        native.createCpuBackend({ threads: 1 }).close();
        return true;
      } catch (error) {
        if (error.code !== 'CONFIG_INVALID') throw error;
        return false;
      }
    });
    const named = names.filter((name) => native.describe().isa.includes(name));
    console.log(JSON.stringify({ named, usable }));`);
  const { named, usable } = JSON.parse(output);
  expect(named).toEqual(usable);
});
