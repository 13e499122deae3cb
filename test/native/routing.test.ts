import { describe, expect, test } from '@jest/globals';
import { oneCopyEach } from '../../bench/one-copy.js';
import { native } from '../../native/index.js';
import { gateRows } from '../support/routing.js';
import { dot, expectBf16, gateOf, keep, routeGiven, row } from './routing-support.js';
import { routing, slabOf, someValues, valuesOf } from './support.js';

describe('routeRows', () => {
  test('divides by the root mean square and multiplies by the weight', async () => {
    const [rowCount, hidden, epsilon] = [150, 24, 0.01];
    const values = someValues(rowCount * hidden, 1);
    const weight = someValues(hidden, 2);
    const gate = gateOf(someValues(2 * hidden, 3), 2, routing);
    const norm = { weight: keep(slabOf(weight)), epsilon };
    const { routed } = await gateRows({ rows: keep(slabOf(values)), rowCount, gate, topK: 2, norm });
    const expected = values.map((value, index) => {
      const own = row(values, Math.floor(index / hidden), hidden);
      return (value / Math.sqrt(dot(own, own) / hidden + epsilon)) * weight[index % hidden]!;
    });
    expectBf16(valuesOf(keep(routed.normed!)), expected);
    keep(routed);
  });

  const [rowCount, hidden, experts] = [130, 16, 6];
  const values = someValues(rowCount * hidden, 3);
  const weight = someValues(experts * hidden, 4);

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
    const gate = gateOf(weight, experts, routing);
    expect([gate.experts, gate.hidden]).toEqual([experts, hidden]);
    const { routed, choice } = await gateRows({ rows: keep(slabOf(values)), rowCount, gate, topK: 2, bias });
    keep(routed);
    const counts = new Array(experts).fill(0);
    for (let index = 0; index < rowCount; index += 1) {
      const { chosen, weights } = choose(index, bias ? [...bias] : new Array(experts).fill(0));
      expect([...choice.experts.subarray(index * 2, index * 2 + 2)]).toEqual(chosen);
      choice.weights.subarray(index * 2, index * 2 + 2).forEach((value, position) => {
        expect(value).toBeCloseTo(weights[position]!, 5);
      });
      for (const expert of chosen) counts[expert] += 1;
    }
    expect([...routed.counts]).toEqual(counts);
  });
});

describe('results of routed rows', () => {
  const [rowCount, hidden, topK] = [200, 7, 2];

  /** Two experts, one on each worker; token t gives its weights to both. */
  async function route() {
    const slots = rowCount * topK;
    const experts = Uint32Array.from({ length: slots }, (_, slot) => (slot + Math.floor(slot / 2)) % 2);
    const weights = Float32Array.from({ length: slots }, (_, slot) => (slot === 140 ? 3e38 : 0.25));
    const copies = oneCopyEach(Uint32Array.of(0, 1));
    return routeGiven(
      { rowCount, hidden, topK },
      { experts, weights },
      { copies, pace: null, weighted: true },
    );
  }
  const parts = () => [0, 1].map(() => keep(slabOf(new Array(rowCount * hidden).fill(64))));
  const exact = { mode: 'exact', hidden, weighted: true, residual: null } as const;

  test('that become NaN or infinite are counted, and the first of them is found', async () => {
    const residual = someValues(rowCount * hidden, 6);
    residual[5 * hidden + 6] = Number.NaN;
    const options = { ...exact, routed: await route(), residual: keep(slabOf(residual)) };
    const { rows, nonFinite } = await native.combineRows({ ...options, parts: parts() });
    keep(rows);
    expect(nonFinite).toBe(2);
    expect(await native.findNonFinite(rows, 0, rowCount, hidden)).toBe(5);
    expect(await native.findNonFinite(rows, 6, rowCount - 6, hidden)).toBe(70);
    expect(await native.findNonFinite(rows, 71, 129, hidden)).toBeNull();
  });

  test('that are missing are data loss, not zeros', async () => {
    const routed = await route();
    const one = parts().slice(1);
    await expect(native.combineRows({ ...exact, routed, parts: one })).rejects.toMatchObject({
      code: 'DATA_LOSS',
      operation: 'combineRows',
    });
  });

  test('are summed even if the handle is released meanwhile, and refused afterwards', async () => {
    const routed = await route();
    const pending = native.combineRows({ ...exact, routed, parts: parts() });
    routed.release();
    routed.release();
    keep((await pending).rows);
    const late = native.combineRows({ ...exact, routed, parts: parts() });
    await expect(late).rejects.toMatchObject({
      code: 'SLAB_RELEASED',
      message: 'this RoutedRows was released',
    });
  });
});
