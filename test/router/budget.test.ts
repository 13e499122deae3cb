import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { type BudgetShare, ByteBudget, type Reservation } from '../../services/router/budget.js';

const never = new AbortController().signal;

/** Lets every promise that can settle do so. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

async function takeAll(share: BudgetShare, bytes: number): Promise<Reservation[]> {
  const taken: Reservation[] = [];
  for (;;) {
    const controller = new AbortController();
    let granted: Reservation | null = null;
    share.reserve(bytes, controller.signal).then(
      (reservation) => {
        granted = reservation;
      },
      () => {},
    );
    await settle();
    if (granted === null) {
      controller.abort(new Error('enough'));
      return taken;
    }
    taken.push(granted);
  }
}

describe('a byte budget', () => {
  test('leaves a part for the next batch, however many there are', async () => {
    const budget = new ByteBudget(1_000);
    const first = await takeAll(budget.open(), 10);
    expect(first).toHaveLength(50);
    const second = await takeAll(budget.open(), 10);
    expect(second).toHaveLength(33);
    const third = await takeAll(budget.open(), 10);
    expect(third.length).toBeGreaterThan(10);
    expect(budget.used).toBeLessThanOrEqual(1_000);
  });

  test('lets a batch that holds nothing take a chunk larger than its share', async () => {
    const budget = new ByteBudget(1_000);
    budget.open();
    const reservation = await budget.open().reserve(900, never);
    expect(reservation.bytes).toBe(900);
  });

  test('refuses what it could never hold', async () => {
    await expect(new ByteBudget(1_000).open().reserve(1_001, never)).rejects.toMatchObject({
      code: 'TOO_LARGE',
      details: { value: 1_001, allowed: 1_000, setting: 'budgetBytes' },
    });
  });

  test('serves in the order of arrival: a small chunk does not overtake a large one', async () => {
    const budget = new ByteBudget(1_000);
    const held = await budget.open().reserve(600, never);
    const order: string[] = [];
    const large = budget
      .open()
      .reserve(500, never)
      .then(() => order.push('large'));
    const small = budget
      .open()
      .reserve(100, never)
      .then(() => order.push('small'));
    await settle();
    expect(order).toEqual([]);
    held.release();
    await Promise.all([large, small]);
    expect(order).toEqual(['large', 'small']);
  });

  test('passes over a batch at the limit of its share', async () => {
    const budget = new ByteBudget(1_000);
    const greedy = budget.open();
    const first = await greedy.reserve(300, never);
    const modest = budget.open();
    let overtaken = false;
    const waiting = greedy.reserve(300, never).then((reservation) => {
      expect(overtaken).toBe(true);
      return reservation;
    });
    (await modest.reserve(300, never)).release();
    overtaken = true;
    first.release();
    expect((await waiting).bytes).toBe(300);
  });

  test('forgets a waiter that gives up, and serves those behind it', async () => {
    const budget = new ByteBudget(1_000);
    await budget.open().reserve(600, never);
    const controller = new AbortController();
    const large = budget.open().reserve(900, controller.signal);
    const small = budget.open().reserve(100, never);
    controller.abort(new Error('gone'));
    await expect(large).rejects.toThrow('gone');
    expect((await small).bytes).toBe(100);
    expect(budget.waiting).toBe(0);
  });

  test('never exceeds its capacity, loses nothing, and serves everybody in the end', async () => {
    const steps = fc.array(
      fc.record({
        batch: fc.nat(4),
        bytes: fc.integer({ min: 1, max: 400 }),
        act: fc.constantFrom('reserve', 'reserve', 'reserve', 'shrink', 'release', 'abort'),
      }),
      { maxLength: 60 },
    );
    await fc.assert(
      fc.asyncProperty(steps, async (sequence) => {
        const budget = new ByteBudget(1_000);
        const shares = Array.from({ length: 5 }, () => budget.open());
        const held: Reservation[] = [];
        const asked: { controller: AbortController; done: Promise<void> }[] = [];
        for (const { batch, bytes, act } of sequence) {
          if (act === 'reserve') {
            const controller = new AbortController();
            const done = shares[batch]!.reserve(bytes, controller.signal).then(
              (reservation) => {
                held.push(reservation);
              },
              () => {},
            );
            asked.push({ controller, done });
          } else if (act === 'shrink') held[0]?.shrink(Math.floor(held[0].bytes / 2));
          else if (act === 'release') held.shift()?.release();
          else asked.shift()?.controller.abort(new Error('gone'));
          await settle();
          expect(budget.used).toBeLessThanOrEqual(1_000);
          expect(budget.used).toBe(held.reduce((sum, { bytes: kept }) => sum + kept, 0));
          expect(budget.used).toBe(shares.reduce((sum, share) => sum + share.held, 0));
        }
        while (budget.waiting > 0) {
          expect(held.length).toBeGreaterThan(0);
          held.shift()!.release();
          await settle();
        }
        await Promise.all(asked.map(({ done }) => done));
        for (const reservation of held) reservation.release();
        expect(budget.used).toBe(0);
      }),
      { numRuns: 60 },
    );
  });
});
