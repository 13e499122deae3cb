import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from '@jest/globals';
import type { RouterSession } from '../../services/client/router-session.js';
import { SessionRouters } from '../../services/client/session-routers.js';
import { SwitchyardError } from '../../services/common/errors.js';
import type { ClusterState } from '../../services/common/generated/switchyard/v1/ClusterState.js';

const routers = ['a', 'b'].map((name) => ({ name, address: `${name}:1`, host: '', state: 'READY' }));
const state = { routers } as unknown as ClusterState;

const noUcx = () => Promise.reject(new Error('there is no UCX'));

test('routers that all fail are each told, and the code is theirs if they share it', async () => {
  const failed = (codes: Record<string, 'DRAINING' | 'LINK_LOST'>) => {
    const open = async ({ name }: { name: string }) => {
      throw new SwitchyardError(codes[name]!, `${name} is tired`);
    };
    const sessions = new SessionRouters({ routers: null, open, openByUcx: noUcx });
    return sessions.pick(state, new Set(), state.routers![0]!);
  };
  await expect(failed({ a: 'DRAINING', b: 'DRAINING' })).rejects.toMatchObject({
    code: 'DRAINING',
    message: 'a:1: a is tired; b:1: b is tired',
  });
  await expect(failed({ a: 'DRAINING', b: 'LINK_LOST' })).rejects.toMatchObject({ code: 'NOT_READY' });
});

test('a router whose stream is still opening is passed over while another has one', async () => {
  const open = ({ name }: { name: string }): Promise<RouterSession> =>
    name === 'a' ? new Promise(() => {}) : Promise.resolve({ failure: null, underWay: 9 } as RouterSession);
  const sessions = new SessionRouters({ routers: null, open, openByUcx: noUcx });
  void sessions.pick(state, new Set(), state.routers![0]!);
  const first = await sessions.pick(state, new Set());
  for (let batch = 0; batch < 4; batch += 1) expect(await sessions.pick(state, new Set())).toBe(first);
});

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
  const sessions = new SessionRouters({ routers: null, open, openByUcx: noUcx });
  const [a, b] = state.routers!;
  const opened = await Promise.all([a, b].map((first) => sessions.pick(state, new Set(), first!)));
  expect(opened).toHaveLength(2);
  expect(asked.slice(0, 2)).toEqual(['a shortly', 'b shortly']);
  expect(asked.slice(2).sort()).toEqual(['a last', 'b last']);
});
