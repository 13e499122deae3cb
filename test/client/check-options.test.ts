import { expect, test } from '@jest/globals';
import { checkOptions } from '../../services/client/check-options.js';
import { SwitchyardClient } from '../../services/client/index.js';

type Call = Parameters<typeof checkOptions>[0];
const { signal } = new AbortController();

test.each<[Call, unknown, string]>([
  ['forward', { combine: 'PARTIAL' }, 'combine'],
  ['sessionBatch', { combine: 'bogus' }, 'combine'],
  ['forward', { layers: '1-1' }, 'layers'],
  ['forward', { layers: [1, 1] }, 'layers'],
  ['sessionBatch', { layers: { first: 0.5, last: 0.5 } }, 'layers.first'],
  ['forward', { layers: { first: -1, last: 0 } }, 'layers.first'],
  ['forward', { layers: { first: 0 } }, 'layers.last'],
  ['forward', { layers: { first: 0, last: 1, step: 1 } }, 'layers.step'],
  ['forward', { layer: 1 }, 'layer'],
  ['sessionBatch', { sequences: 1 }, 'sequences'],
  ['forward', { norm: 'no' }, 'norm'],
  ['forward', { feedback: 'x' }, 'feedback'],
  ['forward', { returnRouting: 1 }, 'returnRouting'],
  ['forward', { batchId: 5 }, 'batchId'],
  ['forward', { chunkTokens: 1.5 }, 'chunkTokens'],
  ['forward', { chunkTokens: -1 }, 'chunkTokens'],
  ['forward', { deadlineMs: 2 ** 31 }, 'deadlineMs'],
  ['sessionBatch', { deadlineMs: 2 ** 32 + 5 }, 'deadlineMs'],
  ['sessionBatch', { deadlineMs: Number.NaN }, 'deadlineMs'],
  ['sessionBatch', { deadlineMs: -1 }, 'deadlineMs'],
  ['forward', { signal: {} }, 'signal'],
  ['forward', { given: {} }, 'given'],
  ['sessionBatch', { given: {} }, 'given.experts'],
  ['session', { transport: 'zz' }, 'transport'],
  ['session', { routers: 0 }, 'routers'],
  ['connect', { timeoutMs: '5' }, 'timeoutMs'],
  ['connect', { token: 'x'.repeat(4_097) }, 'token'],
  ['forward', null, 'options'],
])('%s with %j is refused, and %s is named', (call, options, field) => {
  expect(() => checkOptions(call, options)).toThrow(
    expect.objectContaining({
      code: 'INVALID_ARGUMENT',
      details: expect.objectContaining({ field }),
      message: expect.stringMatching(new RegExp(`^${field} is .*; allowed: .`)),
    }),
  );
});

test.each<[Call, unknown]>([
  ['connect', { token: null, timeoutMs: 100, transport: 'auto' }],
  ['forward', { layers: { first: 1, last: 1 }, norm: false, combine: 'partial', deadlineMs: 2e9, signal }],
  ['forward', { given: () => null, chunkTokens: 0, deadlineMs: 0, sequences: 3, length: 4, tensor: 'x' }],
  ['sessionBatch', { given: { experts: new Uint32Array(2), weights: new Float32Array(2) }, signal }],
  ['session', {}],
])('%s takes %j', (call, options) => {
  expect(() => checkOptions(call, options)).not.toThrow();
});

test('a token that cannot be sent is refused, and is not shown', async () => {
  const connecting = SwitchyardClient.connect('127.0.0.1:1', { token: 'abc\n' });
  await expect(connecting).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', details: { field: 'token' } });
  await connecting.catch((error) => expect(error.message).not.toContain('abc'));
});
