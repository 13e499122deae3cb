import { getEventListeners } from 'node:events';
import { describe, expect, test } from '@jest/globals';
import { SwitchyardError } from '../../services/common/errors.js';
import { abortable, abortError, Deferred, End, onAbort, sleep } from '../../services/common/lifecycle.js';

describe('sleep', () => {
  test('ends at once, with the reason, when its signal aborts', async () => {
    const abort = new AbortController();
    const start = performance.now();
    const sleeping = sleep(60_000, abort.signal);
    abort.abort('enough');
    await expect(sleeping).rejects.toBe('enough');
    await expect(sleep(60_000, abort.signal)).rejects.toBe('enough');
    expect(performance.now() - start).toBeLessThan(5_000);
  });

  test('lasts as long as it says', async () => {
    const start = performance.now();
    await sleep(30);
    expect(performance.now() - start).toBeGreaterThan(28);
  });
});

describe('onAbort', () => {
  test('calls each once, in order, and not who took it back; a signal has one listener, and none when nobody waits', () => {
    const { signal, ...end } = control();
    const called: number[] = [];
    const forgets = [0, 1, 2, 3].map((index) => onAbort(signal, () => called.push(index)));
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    forgets[1]!();
    forgets[1]!();
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    for (const forget of forgets) forget();
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
    const push = () => called.push(5);
    onAbort(signal, push);
    onAbort(signal, push)();
    end.abort();
    onAbort(signal, () => called.push(6));
    expect(called).toEqual([5, 6]);
  });

  test('serves sleeps and waits of any number', async () => {
    const { signal, abort } = control();
    const never = new Promise(() => {});
    const ends = Array.from({ length: 20 }, () => [sleep(60_000, signal), abortable(never, signal)]).flat();
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    abort();
    const results = await Promise.allSettled(ends);
    expect(results.every(({ status }) => status === 'rejected')).toBe(true);
    await abortable(Promise.resolve(), new AbortController().signal);
  });

  test.each([
    ['a signal', () => new AbortController().signal],
    ['an End', () => new End()],
  ])('takes back each of many on %s for what each of few costs, in whatever order', (_, make) => {
    const all = 100_000;
    /** Processor time until `all` have been taken back, of which so many wait at once. */
    const costOf = (waiting: number) => {
      const signal = make();
      const begun = process.cpuUsage();
      for (let taken = 0; taken < all; taken += waiting) {
        const forgets = Array.from({ length: waiting }, () => onAbort(signal, () => {}));
        // Every other one as they came, and the rest from the last on.
        for (let at = 0; at < waiting; at += 2) forgets[at]!();
        for (let at = waiting - 1; at > 0; at -= 2) forgets[at]!();
      }
      const { user, system } = process.cpuUsage(begun);
      return user + system;
    };
    costOf(100);
    expect(costOf(all)).toBeLessThan(10 * costOf(100));
  });

  const control = () => {
    const controller = new AbortController();
    return { signal: controller.signal, abort: () => controller.abort() };
  };
});

test('a deferred keeps its first settlement', async () => {
  const deferred = new Deferred<number>();
  deferred.resolve(1);
  deferred.reject(new Error('late'));
  await expect(deferred.promise).resolves.toBe(1);
});

test('an aborted signal says whether a deadline passed, or what its reason was', async () => {
  const timeout = AbortSignal.timeout(1);
  await new Promise((resolve) => timeout.addEventListener('abort', resolve));
  expect(abortError(timeout).code).toBe('DEADLINE_EXCEEDED');
  expect(abortError(AbortSignal.abort()).code).toBe('CANCELLED');
  const own = new SwitchyardError('CLIENT_STALLED', 'the client does not read');
  expect(abortError(AbortSignal.abort(own))).toBe(own);
});
