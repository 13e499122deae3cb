import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { assignSeats, dealExperts, type Seats } from '../../services/coordinator/placement.js';
import { ExpertOrder } from '../../services/model/expert-order.js';

const layers = fc.uniqueArray(
  fc.record({ layer: fc.nat({ max: 100 }), experts: fc.integer({ min: 1, max: 64 }) }),
  { selector: ({ layer }) => layer, minLength: 1, maxLength: 8 },
);

describe('the order of experts', () => {
  test('numbers every expert of every layer, and no other', () => {
    fc.assert(
      fc.property(layers, fc.nat({ max: 100 }), (spec, other) => {
        const order = new ExpertOrder(spec);
        const all = Array.from({ length: order.total }, (_, index) => order.at(index));
        expect([...order.numbersOf(all)]).toEqual(all.map((_, index) => index));
        expect(new Set(all.map(({ layer, expert }) => `${layer}/${expert}`)).size).toBe(order.total);
        expect(order.indexOf({ layer: other, expert: order.experts(other) })).toBe(-1);
      }),
    );
  });
});

describe('dealing experts to seats', () => {
  test('every expert of every layer is dealt once, evenly in each layer and in the whole', () => {
    fc.assert(
      fc.property(layers, fc.integer({ min: 1, max: 20 }), (spec, seats) => {
        const order = new ExpertOrder(spec);
        const seatOf = dealExperts(order.total, seats);
        expect(seatOf).toHaveLength(spec.reduce((sum, { experts }) => sum + experts, 0));
        for (const part of [seatOf, ...spec.map(({ layer }) => order.sliceOf(layer, seatOf))]) {
          const counts = new Array<number>(seats).fill(0);
          for (const seat of part) counts[seat]! += 1;
          expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
        }
      }),
    );
  });

  test('consecutive experts go to different seats', () => {
    expect([...dealExperts(10, 4)]).toEqual([0, 1, 2, 3, 0, 1, 2, 3, 0, 1]);
  });
});

describe('seats of workers', () => {
  const empty = (count: number): Seats => new Array<null>(count).fill(null);

  test('nobody is seated before as many live as are expected', () => {
    expect(assignSeats(empty(3), ['a', 'b'])).toEqual([null, null, null]);
    expect(assignSeats(empty(3), ['a', 'b', 'c'])).toEqual(['a', 'b', 'c']);
  });

  test('a dead worker finds its seat again when it returns', () => {
    expect(assignSeats(['a', 'b', 'c'], ['a', 'c'])).toEqual(['a', 'b', 'c']);
    expect(assignSeats(['a', 'b', 'c'], ['a', 'b', 'c'])).toEqual(['a', 'b', 'c']);
  });

  test('a new worker takes the seat of a dead one, and the dead one is a spare when it returns', () => {
    const after = assignSeats(['a', 'b', 'c'], ['a', 'c', 'd']);
    expect(after).toEqual(['a', 'd', 'c']);
    expect(assignSeats(after, ['a', 'b', 'c', 'd'])).toEqual(['a', 'd', 'c']);
  });

  test('through any history: nobody has two seats, the living keep theirs, spares never wait beside a dead seat', () => {
    const names = ['a', 'b', 'c', 'd', 'e', 'f'];
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 4 }),
        fc.array(fc.subarray(names), { maxLength: 12 }),
        (count, history) => {
          let seats = empty(count);
          for (const live of history) {
            const before = seats;
            seats = assignSeats(before, live);
            const holders = seats.filter((name) => name !== null);
            expect(new Set(holders).size).toBe(holders.length);
            expect(seats.length).toBe(count);
            for (const [seat, name] of before.entries()) {
              if (name !== null && live.includes(name)) expect(seats[seat]).toBe(name);
            }
            const spares = live.filter((name) => !seats.includes(name));
            const vacant = seats.filter((name) => name === null || !live.includes(name));
            if (holders.length > 0) expect(Math.min(spares.length, vacant.length)).toBe(0);
          }
        },
      ),
    );
  });
});
