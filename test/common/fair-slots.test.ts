import { describe, expect, test } from '@jest/globals';
import { array, assert, integer, nat, property, tuple } from 'fast-check';
import { FairSlots } from '../../services/common/fair-slots.js';

describe('slots that peers share', () => {
  test('one peer gets half, the next half of what is left', () => {
    const slots = new FairSlots(512);
    const fill = (peer: string) => {
      while (slots.take(peer) !== null);
      return slots.heldBy(peer);
    };
    expect(['a', 'b', 'c'].map(fill)).toEqual([256, 128, 64]);
    expect(slots.free).toBe(64);
  });

  test('a single slot can be had', () => {
    const slots = new FairSlots(1);
    const giveBack = slots.take('a');
    expect(giveBack).not.toBeNull();
    expect(slots.take('b')).toBeNull();
    giveBack!();
    giveBack!();
    expect(slots.free).toBe(1);
    expect(slots.take('b')).not.toBeNull();
  });

  test('whoever has none gets one while any is free, and none is lost', () => {
    const steps = array(tuple(nat(5), nat(3)), { maxLength: 200 });
    assert(
      property(integer({ min: 1, max: 40 }), steps, (max, moves) => {
        const slots = new FairSlots(max);
        const held: (() => void)[] = [];
        for (const [peer, kind] of moves) {
          if (kind === 0) held.shift()?.();
          else {
            const needy = slots.heldBy(`${peer}`) === 0 && slots.free > 0;
            const giveBack = slots.take(`${peer}`);
            if (needy) expect(giveBack).not.toBeNull();
            if (giveBack) held.push(giveBack);
          }
          expect(slots.free).toBe(max - held.length);
        }
      }),
    );
  });
});
