import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { ExpertLoads } from '../../services/coordinator/loads.js';
import { ExpertOrder } from '../../services/model/expert-order.js';

const order = new ExpertOrder([
  { layer: 3, experts: 2 },
  { layer: 1, experts: 3 },
]);

describe('the load of experts', () => {
  test('is not known before there was any, and is none again when it is long over', () => {
    const loads = new ExpertLoads(order);
    expect(loads.rates(0)).toBeNull();
    loads.observe(1, Uint32Array.of(0, 0, 5), 1_000);
    expect(loads.rates(1_000)).not.toBeNull();
    expect(loads.rates(3_600_000)).toBeNull();
  });

  test('halves in a minute without rows, whatever is asked meanwhile', () => {
    const loads = new ExpertLoads(order);
    loads.observe(3, Uint32Array.of(600, 1_200), 0);
    const first = loads.rates(0)!;
    for (let ms = 0; ms < 60_000; ms += 700) loads.rates(ms);
    const later = loads.rates(60_000)!;
    for (const [expert, rate] of first.entries())
      expect(later[expert]! / (rate || 1)).toBeCloseTo(rate && 0.5);
  });

  test('days of quiet do not wear out the weight of rows that come after', () => {
    const loads = new ExpertLoads(order);
    const dayMs = 86_400_000;
    for (let day = 0; day < 3; day += 1) {
      loads.observe(3, Uint32Array.of(600, 1_200), day * dayMs);
      loads.observe(3, Uint32Array.of(600, 0), day * dayMs + 60_000);
      const rates = loads.rates(day * dayMs + 60_000)!;
      expect(rates[1]! / rates[0]!).toBeCloseTo(600 / 900);
      expect(rates[0]!).toBeCloseTo((900 * Math.LN2) / 60);
      const perUnit = loads.ratePerUnit(day * dayMs + 60_000)!;
      expect(loads.proportions.map((one) => one * perUnit)).toEqual(rates);
    }
  });

  test('a steady load becomes its rows a second, of each expert at its own number', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 1_000 }), { minLength: 5, maxLength: 5 }),
        fc.constantFrom(50, 500, 2_000),
        (perSecond, everyMs) => {
          fc.pre(perSecond.some((rate) => rate > 0));
          const loads = new ExpertLoads(order);
          const rows = Uint32Array.from(perSecond, (rate) => rate * everyMs);
          for (let ms = everyMs; ms <= 900_000; ms += everyMs) {
            loads.observe(3, rows.subarray(0, 2), ms);
            loads.observe(1, rows.subarray(2), ms);
          }
          const rates = loads.rates(900_000)!;
          for (const [expert, rate] of perSecond.entries())
            expect(Math.abs(rates[expert]! / 1_000 - rate)).toBeLessThanOrEqual(0.03 * rate);
        },
      ),
      { numRuns: 20 },
    );
  });
});
