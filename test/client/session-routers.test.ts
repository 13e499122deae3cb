import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from '@jest/globals';
import type { RouterSession } from '../../services/client/router-session.js';
import { SessionRouters } from '../../services/client/session-routers.js';
import type { ClusterState } from '../../services/common/generated/switchyard/v1/ClusterState.js';

const routers = ['a', 'b'].map((name) => ({ name, address: `${name}:1`, host: '', state: 'READY' }));
const state = { routers } as unknown as ClusterState;

test('two batches that each ask the other router last give it the time of the last', async () => {
  const asked: string[] = [];
  let late = () => {};
  const bothAsked = new Promise<void>((resolve) => {
    late = resolve;
  });
  const open = async ({ name }: { name: string }, others: boolean) => {
    asked.push(`${name} ${others ? 'shortly' : 'last'}`);
    if (asked.length === 2) late();
    if (!others) return { failure: null, underWay: 0 } as RouterSession;
    await bothAsked;
    // The other batch waits for it meanwhile.
    if (name === 'b') await delay(20);
    throw new Error(`${name} did not open the session in time`);
  };
  const sessions = new SessionRouters({ routers: null, open });
  const [a, b] = state.routers!;
  const opened = await Promise.all([a, b].map((first) => sessions.pick(state, new Set(), first!)));
  expect(opened).toHaveLength(2);
  expect(asked.slice(0, 2)).toEqual(['a shortly', 'b shortly']);
  expect(asked.slice(2).sort()).toEqual(['a last', 'b last']);
});
