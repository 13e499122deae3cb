import { expect, test } from '@jest/globals';
import { ClusterWatch } from '../../services/client/watch.js';
import { SwitchyardError } from '../../services/common/errors.js';
import type { ClusterStateInput } from '../../services/common/generated/switchyard/v1/ClusterState.js';
import { Deferred } from '../../services/common/lifecycle.js';
import { services } from '../../services/common/protocol.js';
import { atEnd, serve } from '../common/support.js';

/** A server that tells these states at once, whoever watches. */
async function telling(states: ClusterStateInput[], onWatch: () => void): Promise<string> {
  const WatchCluster = (call: { write(state: ClusterStateInput): void }) => {
    onWatch();
    for (const state of states) call.write(state);
  };
  const { address } = await serve({
    services: [{ definition: services.Inference, implementation: { WatchCluster } as never }],
  });
  return address;
}

test('of a server that was left nothing is taken any more, though it has come', async () => {
  const state = { router: 'r', routers: [], ready: false };
  const first = await telling(
    [
      { ...state, reason: 'it does not know its cluster' },
      { ...state, reason: 'it does now', model: { name: 'm' } },
    ],
    () => {},
  );
  const followed = new Deferred<void>();
  const second = await telling([], followed.resolve);
  const told: string[] = [];
  const watch = new ClusterWatch({
    addresses: [first, second],
    credential: { token: null },
    timeoutMs: 600_000,
    onState: ({ reason }) => told.push(reason),
  });
  atEnd(() => watch.end(new SwitchyardError('CANCELLED', 'the test is over')));
  await watch.start();
  await followed.promise;
  expect(told).toEqual(['it does not know its cluster']);
  expect(watch.told).toBe(false);
});
