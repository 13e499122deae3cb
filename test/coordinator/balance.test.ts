import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { unpackFloat32 } from '../../services/common/packed.js';
import { balancedness, Feedback } from '../../services/coordinator/balance.js';

const options = { rate: 0.01, limit: 1, windowRowsPerExpert: 16 };
const loads = (experts: number) =>
  fc.array(fc.nat({ max: 5_000 }), { minLength: experts, maxLength: experts });

/** Of layer 0. */
const biasOf = (feedback: Feedback) => new Map(feedback.biases()).get(0)!;

describe('load feedback', () => {
  test('no step is taken before the window is full, and then exactly one', () => {
    const feedback = new Feedback([{ layer: 3, experts: 4, isolated: null, shared: [] }], options);
    expect(feedback.observe(3, Uint32Array.of(40, 0, 0, 0))).toBe(false);
    expect(feedback.version).toBe(0);
    expect(feedback.observe(3, Uint32Array.of(0, 24, 0, 0))).toBe(true);
    expect(feedback.version).toBe(1);
    expect(feedback.observe(3, Uint32Array.of(1, 1, 1, 1))).toBe(false);
  });

  test('an expert above its share loses, one below it gains, the others keep their order', () => {
    const feedback = new Feedback([{ layer: 0, experts: 4, isolated: null, shared: [] }], options);
    feedback.observe(0, Uint32Array.of(100, 60, 30, 10));
    const bias = [...biasOf(feedback)];
    expect(bias[0]).toBeLessThan(0);
    expect(bias[3]).toBeGreaterThan(0);
    expect([...bias].sort((a, b) => a - b)).toEqual(bias);
  });

  test('an even load changes nothing', () => {
    const feedback = new Feedback([{ layer: 0, experts: 4, isolated: null, shared: [] }], options);
    feedback.observe(0, Uint32Array.of(50, 50, 50, 50));
    expect([...biasOf(feedback)]).toEqual([0, 0, 0, 0]);
  });

  test('tells the layers that changed since a version, and those alone', () => {
    const feedback = new Feedback(
      [0, 1, 2].map((layer) => ({ layer, experts: 2, isolated: null, shared: [] })),
      options,
    );
    const changed = (version: number) => feedback.changedSince(version).map(({ layer }) => layer);
    expect(changed(0)).toEqual([]);
    feedback.observe(2, Uint32Array.of(100, 0));
    feedback.observe(0, Uint32Array.of(0, 100));
    expect([changed(0), changed(1), changed(2)]).toEqual([[0, 2], [0], []]);
    const [{ bias }] = feedback.changedSince(1) as [{ bias: Buffer }];
    expect([...unpackFloat32(bias)]).toEqual([...biasOf(feedback)].map(Math.fround));
  });

  test('biases stay centred and bounded under any load', () => {
    fc.assert(
      fc.property(
        fc.array(loads(6), { maxLength: 40 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (history, rate) => {
          const feedback = new Feedback([{ layer: 0, experts: 6, isolated: null, shared: [] }], {
            ...options,
            rate,
            limit: 0.5,
          });
          for (const rows of history) feedback.observe(0, Uint32Array.from(rows));
          const bias = [...biasOf(feedback)];
          for (const value of bias) {
            expect(Number.isFinite(value)).toBe(true);
            expect(Math.abs(value)).toBeLessThanOrEqual(0.5);
          }
          const reached = bias.some((value) => Math.abs(value) === 0.5);
          if (!reached) expect(Math.abs(bias.reduce((sum, value) => sum + value, 0))).toBeLessThan(1e-9);
        },
      ),
    );
  });

  test('isolated experts and the others are each compared with their own kind', () => {
    const isolated = {
      experts: 2,
      expert: { ffn: 8, activation: 'swiglu', glu: null, biased: false },
    } as const;
    const layer = { layer: 0, experts: 5, isolated: { ...isolated, tokenIds: [7] }, shared: [] };
    const feedback = new Feedback([layer], options);
    const alone = new Feedback([{ layer: 0, experts: 3, isolated: null, shared: [] }], options);
    // The isolated have too few rows for a step.
    expect(feedback.observe(0, Uint32Array.of(90, 30, 30, 20, 1))).toBe(true);
    alone.observe(0, Uint32Array.of(90, 30, 30));
    expect([...biasOf(feedback)]).toEqual([...biasOf(alone), 0, 0]);
    expect(feedback.version).toBe(1);
    expect(feedback.observe(0, Uint32Array.of(0, 0, 1, 20, 1))).toBe(true);
    const [, , , often, seldom] = biasOf(feedback);
    expect(often).toBeLessThan(0);
    expect(seldom).toBeCloseTo(-often!);
    expect([...biasOf(feedback)].slice(0, 3)).toEqual([...biasOf(alone)]);
  });

  test('closes the loop: a gate with fixed preferences ends up even', () => {
    const preference = [0.5, 0.3, 0.15, 0.05];
    const feedback = new Feedback([{ layer: 0, experts: 4, isolated: null, shared: [] }], options);
    let rows: number[] = [];
    for (let step = 0; step < 400; step += 1) {
      const bias = biasOf(feedback);
      rows = [0, 0, 0, 0];
      // Tokens whose scores spread around the preferences, each to its best expert.
      for (let token = 0; token < 400; token += 1) {
        const scores = preference.map(
          (score, expert) => score + bias[expert]! + 0.4 * Math.sin(token * (expert + 2.3)),
        );
        rows[scores.indexOf(Math.max(...scores))]! += 1;
      }
      feedback.observe(0, Uint32Array.from(rows));
    }
    expect(balancedness(Float64Array.from(rows), [[0], [1], [2], [3]])).toBeGreaterThan(0.9);
  });
});

describe('balancedness', () => {
  test('is mean/max of the rows of workers, not of experts', () => {
    const workersOf = [[0], [0], [1], [1]];
    const balance = (...rows: number[]) => balancedness(Float64Array.from(rows), workersOf);
    expect(balance(30, 10, 20, 20)).toBe(1);
    expect(balance(30, 30, 10, 10)).toBeCloseTo(40 / 60);
    expect(balance(80, 0, 0, 0)).toBe(0.5);
    expect(balance(0, 0, 0, 0)).toBe(1);
  });

  test("takes the rows of an expert with several copies as shared, and those of one without a copy as nobody's", () => {
    expect(balancedness(Float64Array.of(40, 20, 99), [[0, 1], [1], []])).toBe(30 / 40);
  });
});
