import { describe, expect, test } from '@jest/globals';
import { SwitchyardError } from '../../services/common/errors.js';
import { abortError, Deferred, sleep } from '../../services/common/lifecycle.js';

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
