import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { SwitchyardError } from '../../services/common/errors.js';
import { Credits } from '../../services/transport/credits.js';

const source = { setting: 'linkWindowBytes', node: 'worker w' };
const never = new AbortController().signal;
const settled = () => new Promise((resolve) => setImmediate(resolve));

describe('credits', () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('acquire' as const), bytes: fc.integer({ min: 0, max: 120 }) }),
    fc.record({ kind: fc.constant('release' as const), which: fc.nat() }),
    fc.record({ kind: fc.constant('abort' as const), which: fc.nat() }),
  );

  test('stay within the capacity, are granted in order, and are never lost', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
        const credits = new Credits(100, source);
        let waiting: { bytes: number; abort: AbortController; id: number }[] = [];
        let held: { bytes: number }[] = [];
        const grants: number[] = [];
        let id = 0;
        const check = async () => {
          await settled();
          expect(credits.outstanding).toBe(held.reduce((sum, { bytes }) => sum + bytes, 0));
          expect(credits.outstanding).toBeLessThanOrEqual(100);
          expect(credits.waiting).toBe(waiting.length);
          // Nobody waits whose turn it is and who would fit.
          const [first] = waiting;
          if (first) expect(credits.outstanding + first.bytes).toBeGreaterThan(100);
          expect(grants).toEqual([...grants].sort((a, b) => a - b));
        };
        for (const action of steps) {
          if (action.kind === 'acquire') {
            const request = { bytes: action.bytes, abort: new AbortController(), id: id++ };
            waiting.push(request);
            credits.acquire(action.bytes, request.abort.signal).then(
              () => {
                waiting = waiting.filter((other) => other !== request);
                held.push(request);
                grants.push(request.id);
              },
              (error: SwitchyardError) => {
                waiting = waiting.filter((other) => other !== request);
                expect(error.code).toBe(request.abort.signal.aborted ? 'CANCELLED' : 'TOO_LARGE');
                if (error.code === 'TOO_LARGE') expect(request.bytes).toBeGreaterThan(100);
              },
            );
          } else if (action.kind === 'release' && held.length > 0) {
            const [{ bytes }] = held.splice(action.which % held.length, 1) as [{ bytes: number }];
            credits.release(bytes);
          } else if (action.kind === 'abort' && waiting.length > 0) {
            waiting[action.which % waiting.length]!.abort.abort();
          }
          await check();
        }
        while (held.length > 0 || waiting.length > 0) {
          const all = held;
          held = [];
          for (const { bytes } of all) credits.release(bytes);
          await check();
        }
        expect(credits.outstanding).toBe(0);
      }),
      { numRuns: 60 },
    );
  });

  test('close refuses those that wait and those to come; what is held can be given back', async () => {
    const credits = new Credits(10, source);
    await credits.acquire(8, never);
    const waiting = credits.acquire(5, never);
    const lost = new SwitchyardError('LINK_LOST', 'gone');
    credits.close(lost);
    await expect(waiting).rejects.toBe(lost);
    await expect(credits.acquire(1, never)).rejects.toBe(lost);
    credits.release(8);
    expect(credits.outstanding).toBe(0);
  });

  test('an aborted signal takes nothing', async () => {
    const credits = new Credits(10, source);
    await expect(credits.acquire(1, AbortSignal.abort())).rejects.toMatchObject({ code: 'CANCELLED' });
    expect(credits.outstanding).toBe(0);
  });

  test('one that gives up waiting lets smaller ones behind it through', async () => {
    const credits = new Credits(10, source);
    const abort = new AbortController();
    await credits.acquire(6, never);
    const large = credits.acquire(9, abort.signal);
    const small = credits.acquire(4, never);
    abort.abort();
    await expect(large).rejects.toMatchObject({ code: 'CANCELLED' });
    await small;
    expect(credits.outstanding).toBe(10);
  });

  test('to give back more than is held is a bug', async () => {
    const credits = new Credits(10, source);
    await credits.acquire(3, never);
    expect(() => credits.release(4)).toThrow('outstanding: 3');
    expect(() => credits.release(-1)).toThrow('outstanding: 3');
  });

  test.each([0, -1, 1.5, Number.NaN, 2 ** 60])('a capacity of %d is refused', (capacity) => {
    expect(() => new Credits(capacity, source)).toThrow('credit_bytes');
  });
});
