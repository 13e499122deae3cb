import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { oneCopyEach } from '../../bench/one-copy.js';
import { type GateWeights, native, type Slab } from '../../native/index.js';
import { floatsOf, routing, runScript, slabOf, someValues, valuesOf } from './support.js';

type RouteOptions = Parameters<typeof native.routeRows>[0];

function route(options: Pick<RouteOptions, 'rows' | 'rowCount' | 'hidden'> & Partial<RouteOptions>) {
  return native.routeRows({
    norm: null,
    gate: null,
    table: null,
    copies: oneCopyEach(new Uint32Array(4)),
    pace: null,
    workers: 1,
    limits: null,
    weighted: false,
    ...options,
  });
}

function gateOf(experts: number, hidden: number): GateWeights {
  const weight = floatsOf(someValues(experts * hidden, 1));
  const gate = native.createGate({
    weight,
    experts,
    hidden,
    logitBias: null,
    selectionBias: null,
    routing,
  });
  weight.release();
  return gate;
}

async function normalise(rows: Slab, rowCount: number, weight: Slab, gate: GateWeights): Promise<Slab> {
  const { hidden } = gate;
  const norm = { weight, epsilon: 0 };
  const pending = route({ rows, rowCount, hidden, norm, gate: { weights: gate, bias: null } });
  return (await pending).normed!;
}

describe('a slab', () => {
  test('is released any number of times, and refuses every later use', async () => {
    const before = native.arenaStats().slabs;
    const slab = native.allocateSlab(10_000);
    expect(slab.byteLength).toBe(10_000);
    expect(slab.released).toBe(false);
    expect(native.arenaStats().slabs).toBe(before + 1);
    slab.release();
    slab.release();
    expect(slab.released).toBe(true);
    expect(native.arenaStats().slabs).toBe(before);
    expect(() => slab.view()).toThrow(
      expect.objectContaining({
        code: 'SLAB_RELEASED',
        operation: 'view',
        message: 'this Slab was released',
      }),
    );
    await expect(native.copyIn(new Uint8Array(4), slab, 0)).rejects.toMatchObject({
      code: 'SLAB_RELEASED',
      operation: 'copyIn',
    });
  });

  test('that is shared is given back when the last handle on it is released', async () => {
    const before = native.arenaStats().slabs;
    const slab = native.allocateSlab(100);
    const view = slab.view();
    view[99] = 7;
    native.endView(view);
    const shared = slab.share();
    slab.release();
    expect(() => slab.share()).toThrow('this Slab was released');
    expect(native.arenaStats().slabs).toBe(before + 1);
    const again = shared.view();
    expect(again[99]).toBe(7);
    native.endView(again);
    shared.release();
    await new Promise((resolve) => setImmediate(resolve));
    expect(native.arenaStats().slabs).toBe(before);
  });

  test('is given back when its view is ended, which is empty then', async () => {
    const before = native.arenaStats().slabs;
    const slab = native.allocateSlab(10_000);
    const view = slab.view();
    const part = view.subarray(100, 200);
    slab.release();
    expect(native.arenaStats().slabs).toBe(before + 1);
    native.endView(view);
    native.endView(view);
    expect([view.byteLength, part.byteLength]).toEqual([0, 0]);
    await new Promise((resolve) => setImmediate(resolve));
    expect(native.arenaStats().slabs).toBe(before);
    expect(() => native.endView(new Float32Array(1) as never)).toThrow(
      'view is a typed array of another type',
    );
  });

  test('released in flight is given back when the operation has ended', async () => {
    const source = {
      kind: 'synthetic',
      seed: 1,
      stream: 1,
      rows: 512,
      columns: 64,
      scale: 1,
      center: 0,
    } as const;
    const rows = await native.readTensor(source);
    const weight = await native.readTensor({ ...source, rows: 1 });
    const gate = gateOf(4, 64);
    const before = native.arenaStats().slabs;
    const pending = normalise(rows, 512, weight, gate);
    rows.release();
    weight.release();
    const output = await pending;
    expect(native.arenaStats().slabs).toBe(before - 1);
    output.release();
    expect(native.arenaStats().slabs).toBe(before - 2);
  });

  test('released in flight still holds the rows that the operation reads', async () => {
    const values = someValues(512 * 64, 3);
    const rows = slabOf(values);
    const weight = slabOf(new Array(64).fill(1));
    const gate = gateOf(4, 64);
    const pending = normalise(rows, 512, weight, gate);
    rows.release();
    weight.release();
    const output = await pending;
    const firstRow = values.slice(0, 64);
    const norm = Math.sqrt(firstRow.reduce((sum, x) => sum + x * x, 0) / 64);
    valuesOf(output)
      .slice(0, 64)
      .forEach((value, index) => {
        expect(Math.abs(value - firstRow[index]! / norm)).toBeLessThanOrEqual(Math.abs(value) / 128);
      });
    output.release();
  });

  test('views share its memory and keep it after the handle is released', async () => {
    const slab = native.allocateSlab(8);
    const first = slab.view();
    const second = slab.view();
    first.set([1, 2, 3, 4, 5, 6, 7, 8]);
    expect([...second]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    slab.release();
    const others = Array.from({ length: 8 }, () => native.allocateSlab(8));
    for (const other of others) other.view().fill(0);
    expect([...first]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    for (const other of others) other.release();
  });

  test('memory comes back when the views have been collected', async () => {
    const output = await runScript(`
      (async () => {
        require('v8').setFlagsFromString('--expose-gc');
        const collect = require('vm').runInNewContext('gc');
        for (let i = 0; i < 64; i += 1) {
          const slab = native.allocateSlab(1 << 20);
          slab.view().fill(i);
          slab.release();
        }
        for (let i = 0; i < 50 && native.arenaStats().slabs > 0; i += 1) {
          collect();
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
        console.log(JSON.stringify(native.arenaStats().slabs));
      })();
    `);
    expect(output.trim()).toBe('0');
  });

  test('sizes outside the limit are refused and the arena stays usable', async () => {
    const output = await runScript(`
      native.configure({ slabBytesMax: 1 << 20, threads: 1 });
      const kept = native.allocateSlab(1 << 19);
      const codes = [];
      for (const size of [1 << 20, 0, -1, 1.5, NaN, '8', 2 ** 52]) {
        try { native.allocateSlab(size); codes.push('none'); } catch (error) { codes.push(error.code); }
      }
      kept.release();
      native.allocateSlab(1 << 20).release();
      console.log(JSON.stringify({ codes, stats: native.arenaStats() }));
    `);
    const { codes, stats } = JSON.parse(output);
    expect(codes).toEqual([
      'RESOURCE_EXHAUSTED',
      ...new Array(5).fill('INVALID_ARGUMENT'),
      'INVALID_ARGUMENT',
    ]);
    expect(stats.bytesInUse).toBe(0);
    expect(stats.bytesCached).toBeLessThanOrEqual(1 << 20);
    expect(stats.bytesLimit).toBe(1 << 20);
  });

  test('accounting holds for any order of allocations and releases', () => {
    const base = native.arenaStats();
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 300_000 }), { maxLength: 40 }), (sizes) => {
        const slabs = sizes.map((size) => native.allocateSlab(size));
        const stats = native.arenaStats();
        const total = sizes.reduce((sum, size) => sum + size, 0);
        expect(stats.slabs - base.slabs).toBe(sizes.length);
        expect(stats.bytesInUse - base.bytesInUse).toBeGreaterThanOrEqual(total);
        for (const slab of slabs) slab.release();
        expect(native.arenaStats().bytesInUse).toBe(base.bytesInUse);
      }),
      { numRuns: 50 },
    );
  });
});

describe('other handles', () => {
  test('a released gate is refused, one in flight works on', async () => {
    const gate = gateOf(4, 8);
    const rows = slabOf(someValues(3 * 8, 2));
    const call = () => route({ rows, rowCount: 3, hidden: 8, gate: { weights: gate, bias: null } });
    const pending = call();
    gate.release();
    gate.release();
    expect((await pending).counts.reduce((sum, count) => sum + count, 0)).toBe(6);
    await expect(call()).rejects.toMatchObject({ code: 'SLAB_RELEASED', operation: 'routeRows' });
    rows.release();
  });

  test('scripts cannot make handles or pass one for another', async () => {
    const slab = native.allocateSlab(8);
    const Slab = slab.constructor as new (...args: unknown[]) => unknown;
    expect(() => new Slab()).toThrow('Slab is made by the addon alone');
    expect(() => new Slab({})).toThrow('Slab is made by the addon alone');
    const weight = Object.create(slab) as typeof slab;
    await expect(normalise(slab, 1, weight, gateOf(4, 4))).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: 'norm.weight is an object; allowed: a Slab',
    });
    slab.release();
  });
});
