import { type ClientReadableStream, status } from '@grpc/grpc-js';
import { afterEach, expect, test } from '@jest/globals';
import type { ClusterState } from '../../services/common/generated/switchyard/v1/ClusterState.js';
import { connect } from '../../services/common/grpc-channel.js';
import { clients } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { clusterState, Watchers } from '../../services/common/watchers.js';
import { serveWatch } from '../support/watch-server.js';

const megabyte = 1024 * 1024;
const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** A server that tells `told.reason`, and a client of it. */
async function start(watchersMax?: number) {
  const told = { reason: '0' };
  const watchers = new Watchers(() => ({ ...told, ready: false }), watchersMax);
  const server = await serveWatch(watchers, megabyte);
  cleanups.push(() => server.close(0));
  const connection = () => {
    const client = connect(clients.Inference, server.address, { token: null, messageBytesMax: 4 * megabyte });
    cleanups.push(() => client.close());
    return client;
  };
  const tell = (reason: string) => {
    told.reason = reason;
    watchers.notify();
  };
  return { watchers, server, client: connection(), connection, tell };
}

/** The reasons that a call is told, as they come, and how it ends. */
function listen(call: ClientReadableStream<ClusterState>) {
  const reasons: string[] = [];
  let wake = () => {};
  call.on('data', ({ reason }: ClusterState) => {
    reasons.push(reason);
    wake();
  });
  const ended = new Promise((resolve) => {
    call.on('error', (error) => resolve(fromServiceError(error)));
    call.on('end', () => resolve(null));
  });
  const until = async (reason: string) => {
    while (reasons.at(-1) !== reason) await new Promise<void>((resolve) => (wake = resolve));
  };
  return { reasons, ended, until };
}

test('a watcher is told the state at once and on each change, and only then', async () => {
  const { client, tell } = await start();
  const first = listen(client.watchCluster({}));
  await first.until('0');
  tell('0');
  tell('1');
  await first.until('1');
  const second = listen(client.watchCluster({}));
  await second.until('1');
  tell('1');
  tell('2');
  await Promise.all([first.until('2'), second.until('2')]);
  expect([first.reasons, second.reasons]).toEqual([
    ['0', '1', '2'],
    ['1', '2'],
  ]);
});

test('a watcher that is slow holds no queue: it is told the latest state', async () => {
  const { client, connection, tell } = await start();
  const slow = connection().watchCluster({});
  await new Promise((resolve) => slow.once('data', resolve));
  slow.pause();
  const other = listen(client.watchCluster({}));
  await other.until('0');
  // Far more than the windows of its stream and connection take.
  const states = 40;
  let latest = '';
  for (let turn = 1; turn <= states; turn += 1) {
    latest = `${turn} ${'x'.repeat(megabyte)}`;
    tell(latest);
    await other.until(latest);
  }
  const late = listen(slow);
  slow.resume();
  await late.until(latest);
  expect(other.reasons.length).toBe(states + 1);
  expect(late.reasons.length).toBeLessThan(states / 2);
});

test('who comes beyond the bound is told the state, and that there are too many', async () => {
  const { client, connection } = await start(4);
  const watching = [listen(client.watchCluster({})), listen(client.watchCluster({}))];
  await Promise.all(watching.map(({ until }) => until('0')));
  const greedy = listen(client.watchCluster({}));
  expect(await greedy.ended).toMatchObject({
    code: 'RESOURCE_EXHAUSTED',
    message: 'the connection watches the cluster 2 times; allowed: fewer than are free of 4, now 2',
  });
  expect(greedy.reasons).toEqual(['0']);
  await listen(connection().watchCluster({})).until('0');
});

test('a watcher that leaves makes room', async () => {
  const { client, tell } = await start(1);
  const first = client.watchCluster({});
  const left = listen(first);
  await left.until('0');
  first.cancel();
  // Who is refused is told one state and no other.
  for (let state = 1; ; state += 1) {
    const next = listen(client.watchCluster({}));
    await next.until(String(state - 1));
    tell(String(state));
    const stands = next.until(String(state)).then(() => true);
    if (await Promise.race([stands, next.ended.then(() => false)])) break;
  }
});

test('the end tells the last state and ends every call: none delays the end of the server', async () => {
  const { client, server, watchers, tell } = await start();
  const watching = listen(client.watchCluster({}));
  await watching.until('0');
  tell('1');
  watchers.end();
  expect(await watching.ended).toBeNull();
  expect(watching.reasons.at(-1)).toBe('1');
  const late = client.watchCluster({});
  const ended = new Promise((resolve) => late.on('status', ({ code }) => resolve(code)));
  const reasons = listen(late);
  expect(await ended).toBe(status.OK);
  expect(reasons.reasons).toEqual(['1']);
  await server.close(600_000);
});

test('the state of a cluster has its live routers alone', () => {
  const node = { host: 'here', address: 'here:1', messageBytesMax: 8 };
  const nodes = [
    { ...node, role: 'ROUTER', name: 'a', state: 'READY', pid: 7 },
    { ...node, role: 'ROUTER', name: 'b', state: 'DRAINING' },
    { ...node, role: 'ROUTER', name: 'c', state: 'DEAD' },
    { ...node, role: 'WORKER', name: 'd', state: 'READY' },
  ] as const;
  const model = { name: 'tiny', hidden: 8 };
  const state = clusterState({ nodes: [...nodes], ready: false, reason: 'no worker' }, model);
  expect(state).toEqual({
    routers: [
      { ...node, name: 'a', state: 'READY' },
      { ...node, name: 'b', state: 'DRAINING' },
    ],
    model,
    ready: false,
    reason: 'no worker',
  });
});
