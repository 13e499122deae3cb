import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { type Candidate, Planning } from '../../services/coordinator/planning.js';
import { ExpertOrder } from '../../services/model/expert-order.js';
import { usualLimits } from '../../services/placement/loading.js';

const expertBytes = 100;
const layers = fc.uniqueArray(
  fc.record({ layer: fc.nat({ max: 100 }), experts: fc.integer({ min: 1, max: 64 }) }),
  { selector: ({ layer }) => layer, minLength: 1, maxLength: 8 },
);

const planningOf = (experts: ExpertOrder, copies = 1) =>
  new Planning({ experts, expertBytes, topK: 1, copies, replicaSlots: null, limits: usualLimits });

const candidate = (slot: number, fields: Partial<Candidate> = {}): Candidate => ({
  slot,
  name: `w${slot}`,
  host: 'local',
  memoryBytes: 1e9,
  cordoned: false,
  meter: { speed: { rowsPerSecond: null, sizes: [] } },
  loadBytesPerSecond: null,
  ...fields,
});

const candidates = (count: number) => Array.from({ length: count }, (_, slot) => candidate(slot));
const nobody = (experts: ExpertOrder) => Array.from({ length: experts.total }, (): number[] => []);

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

describe('dealing the first copies', () => {
  test('every expert of every layer is dealt once, evenly in each layer and in the whole', () => {
    fc.assert(
      fc.property(layers, fc.integer({ min: 1, max: 20 }), (spec, workers) => {
        const order = new ExpertOrder(spec);
        const dealt = planningOf(order).dealt(candidates(workers));
        expect(dealt).toHaveLength(order.total);
        expect(dealt.every((slots) => slots.length === 1)).toBe(true);
        const parts = spec.map(({ layer, experts }) => {
          const { first } = order.rangeOf(layer);
          return dealt.slice(first, first + experts);
        });
        for (const part of [dealt, ...parts]) {
          const counts = new Array<number>(workers).fill(0);
          for (const [slot] of part) counts[slot!]! += 1;
          expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
        }
      }),
    );
  });

  test('consecutive experts go to different workers, in the order that is given', () => {
    const dealt = planningOf(new ExpertOrder([{ layer: 0, experts: 5 }])).dealt([candidate(7), candidate(2)]);
    expect(dealt).toEqual([[7], [2], [7], [2], [7]]);
  });

  test.each([
    ['has too little memory for an equal share', { memoryBytes: 2 * expertBytes }],
    ['is cordoned', { cordoned: true }],
  ])('decides nothing where a worker %s: then memory does', (_, fields) => {
    const planning = planningOf(new ExpertOrder([{ layer: 0, experts: 6 }]));
    expect(planning.dealt([candidate(0), candidate(1, fields)])).toEqual(new Array(6).fill([]));
  });
});

describe('the copies that there must be', () => {
  test('what every token goes to is dealt to all workers, if there is memory', () => {
    const shared = [
      { ffn: 1, activation: 'swiglu', glu: null, biased: false, weight: 1, gated: false } as const,
    ];
    const planning = planningOf(new ExpertOrder([{ layer: 0, experts: 5, shared }]));
    expect(planning.dealt([candidate(0), candidate(1)])).toEqual([[0], [1], [0], [1], [0, 1]]);
    const room = { memoryBytes: 2.5 * expertBytes };
    expect(planning.dealt([candidate(0, room), candidate(1, room)])).toEqual([[], [], [], [], []]);
  });

  test('as many of each expert as are wanted, on different workers, as far as memory goes and no further', () => {
    fc.assert(
      fc.property(
        layers,
        fc.array(fc.nat({ max: 200 }), { minLength: 1, maxLength: 6 }),
        fc.integer({ min: 1, max: 4 }),
        (spec, rooms, copies) => {
          const order = new ExpertOrder(spec);
          const workers = rooms.map((room, slot) => candidate(slot, { memoryBytes: room * expertBytes }));
          const { target, lacking } = planningOf(order, copies).required(workers, nobody(order), null);
          const taken = rooms.map((_, slot) => target.filter((slots) => slots.includes(slot)).length);
          for (const [slot, room] of rooms.entries()) expect(taken[slot]).toBeLessThanOrEqual(room);
          const wanted = Math.min(copies, rooms.length);
          for (const slots of target) expect(new Set(slots).size).toBe(slots.length);
          if (lacking === null) for (const slots of target) expect(slots).toHaveLength(wanted);
          else expect(lacking).toMatchObject({ code: 'RESOURCE_EXHAUSTED' });
          // One copy of every expert comes before a second of any.
          const room = rooms.reduce((sum, one) => sum + one, 0);
          const without = target.filter(({ length }) => length === 0).length;
          expect(without).toBe(Math.max(0, order.total - room));
        },
      ),
    );
  });

  test('what is held stays, and a cordoned worker gets nothing', () => {
    const planning = planningOf(new ExpertOrder([{ layer: 0, experts: 4 }]), 2);
    const workers = [candidate(0, { cordoned: true }), candidate(1), candidate(2)];
    const { target, lacking } = planning.required(workers, [[0], [0], [1], [2]], null);
    expect(lacking).toBeNull();
    expect(target.map((slots) => slots.includes(0))).toEqual([true, true, false, false]);
    expect(target[2]).toContain(1);
    expect(target[3]).toContain(2);
    expect(target.every(({ length }) => length === 2)).toBe(true);
  });

  test('without a worker there are none, and nothing is said to lack', () => {
    const order = new ExpertOrder([{ layer: 0, experts: 2 }]);
    expect(planningOf(order).required([], [[0], []], null)).toEqual({ target: [[], []], lacking: null });
  });
});

describe('what the planner is given', () => {
  const order = new ExpertOrder([{ layer: 0, experts: 4 }]);

  test('what was not measured of a worker is the median of the others', () => {
    const computing = (rowsPerSecond: number) => ({ speed: { rowsPerSecond, sizes: [] } });
    const workers = [
      candidate(0, { meter: computing(10), loadBytesPerSecond: 10 }),
      candidate(1),
      candidate(2, { meter: computing(40), loadBytesPerSecond: 40 }),
    ];
    const input = planningOf(order).input(workers, nobody(order), null);
    expect(input.workers.map(({ loadBytesPerSecond }) => loadBytesPerSecond)).toEqual([10, 25, 40]);
    // Nothing tells that these computed calls of the same sizes.
    expect(input.workers.map(({ rowsPerSecond }) => rowsPerSecond)).toEqual([25, 25, 25]);
  });

  test('how fast copies may be loaded', () => {
    const limits = { loads: 3, bytesPerSecond: 500 };
    const planning = new Planning({
      ...{ experts: order, expertBytes, topK: 1, copies: 1, replicaSlots: null },
      limits,
    });
    expect(planning.input([candidate(0)], nobody(order), null).limits).toEqual(limits);
  });

  test('copies are named by the place of their workers, whatever their slots', () => {
    const workers = [candidate(7), candidate(2)];
    const input = planningOf(order).input(workers, [[7], [2], [2, 7], [5]], Float64Array.of(1, 2, 3, 4));
    expect(input.present).toEqual([[[0], [1], [0, 1], []]]);
    expect([...input.layers[0]!.loads]).toEqual([1, 2, 3, 4]);
  });
});
