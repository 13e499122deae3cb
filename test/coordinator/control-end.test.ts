import { describe, expect, test } from '@jest/globals';
import { fixedPort } from '../../bench/fixed-port.js';
import { ControlSession } from '../../services/common/control-session.js';
import { coordinatorDialer } from '../../services/common/grpc-duplex.js';
import { groupByLayer } from '../../services/common/layer-experts.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import { until } from '../support/until.js';
import {
  allExperts,
  atEnd,
  leaseMs,
  log,
  RawNode,
  type Started,
  spawnNode,
  start,
  stateOf,
  stopping,
  worker,
} from './control-support.js';
import { hello, tinyModel } from './support.js';

/** What a loaded machine may add. */
const slackMs = 10_000;

describe('the end of a node', () => {
  const ready = async (started: Started, name = 'w0') => {
    const node = worker(started, name).report(allExperts);
    await until(() => started.control.readiness().ready, Boolean);
    return node;
  };

  test('a stream that breaks ends it at once', async () => {
    const started = await start({ leaseMs: 60_000 });
    const node = await ready(started);
    const begin = performance.now();
    node.close();
    await until(
      () => stateOf(started, 'w0')?.state,
      (state) => state === 'DEAD',
    );
    expect(performance.now() - begin).toBeLessThan(30_000);
    const said =
      /^layer 0 expert 0 on worker w0: the worker is dead \(its control stream ended without a goodbye\); 16 of 16 experts are not ready$/;
    await until(
      () => started.control.readiness().reason,
      (reason) => said.test(reason),
    );
  });

  test('silence ends it after the lease, not before', async () => {
    const started = await start();
    const node = await ready(started);
    node.silence();
    const begin = performance.now();
    await until(
      () => stateOf(started, 'w0')?.state,
      (state) => state === 'DEAD',
    );
    const tookMs = performance.now() - begin;
    expect(tookMs).toBeGreaterThan(leaseMs - 100);
    expect(tookMs).toBeLessThan(leaseMs + slackMs);
    expect(stateOf(started, 'w0')!.reason).toMatch(
      /^silent for \d+ ms beyond its heartbeat; allowed: 600 ms$/,
    );
    expect(await until(() => node.error, Boolean)).toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  });

  test('a goodbye drains it, and it has left when it ends its stream', async () => {
    const started = await start();
    const node = await ready(started);
    node.say({ leaving: { reason: 'SIGTERM' } });
    await until(
      () => stateOf(started, 'w0')?.state,
      (state) => state === 'DRAINING',
    );
    await until(
      () => started.control.readiness().reason,
      (reason) => reason.includes('worker w0: the worker is leaving: SIGTERM'),
    );
    await until(
      () => node.of('assignment').at(-1)?.assignment,
      (told) => told?.leave === true && told.experts.length === 0,
    );
    node.silence();
    node.call.end();
    await until(
      () => stateOf(started, 'w0')?.state,
      (state) => state === 'DEAD',
    );
    expect(stateOf(started, 'w0')!.reason).toBe('left: SIGTERM');
    expect(node.error).toBeNull();
  });

  test('it is forgotten after a while, and a cluster whose nodes return under new names does not grow', async () => {
    const started = await start({ leftKeptMs: 100, deadKeptMs: 200, leaseMs: 5_000 });
    const holder = await ready(started, 'holder');
    holder.close();
    for (let index = 0; index < 20; index += 1) {
      const router = new RawNode(started).say({ hello: hello(`pod-${index}`, { role: 'ROUTER' }) });
      await until(() => stateOf(started, `pod-${index}`)?.state, Boolean);
      if (index % 2 === 0) router.say({ leaving: { reason: 'SIGTERM' } });
      router.call.end();
    }
    const states = () => started.control.view.nodes!.map(({ name, state }) => `${name} ${state}`);
    // Its experts are needed and nowhere else, so errors go on to name it.
    await until(states, (all) => all.length === 1);
    expect(states()).toEqual(['holder DEAD']);
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(states()).toEqual(['holder DEAD']);
    const heir = worker(started, 'heir').obey();
    await until(states, (all) => all.length === 1 && all[0] === 'heir READY');
    expect(heir.error).toBeNull();
  });

  test('its experts are loaded by those that are left, and it gets none when it returns unless that pays', async () => {
    const started = await start({ workers: 2, leaseMs: 60_000 });
    const nodes = ['w0', 'w1'].map((name) => worker(started, name).obey());
    await until(() => started.control.readiness().ready, Boolean);
    const { epoch } = started.control.view;
    nodes[0]!.close();
    await until(
      () => started.control.view,
      (view) => view.ready === true && Number(view.epoch) > Number(epoch) + 1,
    );
    expect(stateOf(started, 'w1')).toMatchObject({ experts: 16, serving: 16 });
    const again = worker(started, 'w0').obey();
    await until(
      () => again.of('assignment').length,
      (count) => count > 0,
    );
    expect(stateOf(started, 'w0')).toMatchObject({ state: 'READY', reason: 'it has no experts' });
    expect(started.control.readiness().ready).toBe(true);
  });

  test('where nobody has room for its experts, the reason says so with numbers, until somebody has', async () => {
    const started = await start({ workers: 2, leaseMs: 60_000 });
    const memoryBytes = 8 * tinyModel.expertBytes;
    const nodes = ['w0', 'w1'].map((name) => worker(started, name, { memoryBytes }).obey());
    await until(() => started.control.readiness().ready, Boolean);
    nodes[0]!.close();
    const { reason } = await until(
      () => started.control.readiness(),
      ({ reason }) => reason.includes('fits on none'),
    );
    expect(reason).toMatch(
      /^layer 0 expert 0 on worker w0: the worker is dead \(.*\); layer 0 expert 0 has \d+ bytes and fits on none of the 1 workers without it: the most that is left on one of them is 0 bytes; 8 of 16 experts are not ready$/,
    );
    worker(started, 'w2', { memoryBytes }).obey();
    await until(() => started.control.readiness().ready, Boolean);
    expect(stateOf(started, 'w2')).toMatchObject({ serving: 8 });
  });

  test('a spare serves nothing before it has loaded it', async () => {
    const started = await start({ leaseMs: 60_000 });
    const node = await ready(started);
    const spare = worker(started, 'w1');
    await until(
      () => spare.of('assignment').length,
      (count) => count > 0,
    );
    node.close();
    await until(
      () => spare.of('assignment').at(-1)!.assignment!.experts.length,
      (layers) => layers > 0,
    );
    const published = () =>
      started.control.cluster.placement().layers!.flatMap(({ workers }) => workers!.length);
    await until(published, (layers) => layers.every((copies) => copies === 0));
    expect(started.control.readiness().reason).toMatch(/^layer 0 expert 0 on worker w1: not loaded yet/);
    spare.obey();
    await until(published, (layers) => layers.every((copies) => copies === 8));
    await until(() => started.control.readiness().ready, Boolean);
  });

  test('a process that is stopped (SIGSTOP) is dead after the lease, and a member again when it goes on', async () => {
    const started = await start();
    const child = spawnNode(started.server.address);
    await until(() => started.control.readiness().ready, Boolean);
    child.kill('SIGSTOP');
    const begin = performance.now();
    await until(
      () => stateOf(started, 'child')?.state,
      (state) => state === 'DEAD',
    );
    expect(performance.now() - begin).toBeLessThan(leaseMs + slackMs);
    expect(stateOf(started, 'child')!.reason).toMatch(/^silent for/);
    await until(
      () => started.control.readiness().ready,
      (isReady) => !isReady,
    );
    child.kill('SIGCONT');
    await until(() => started.control.readiness().ready, Boolean);
    child.kill('SIGKILL');
    await until(
      () => stateOf(started, 'child')?.state,
      (state) => state === 'DEAD',
    );
    expect(stateOf(started, 'child')!.reason).toMatch(/^its control stream ended/);
  });
});

describe('a coordinator that comes and goes', () => {
  const session = (address: string, events: string[]) => {
    let assignment = 0;
    const made = new ControlSession({
      coordinators: [address],
      token: null,
      dial: coordinatorDialer(null),
      runtime: nativeRuntime,
      hello: hello('w0'),
      report: () => ({ worker: { ready: groupByLayer(allExperts), readyChanged: true, assignment } }),
      reportMs: 50,
      leaseMs,
      onMessage: (message) => {
        if (message.kind) events.push(message.kind);
        if (message.welcome) assignment = 0;
        if (message.assignment) assignment = message.assignment.version;
      },
      log,
    });
    atEnd(() => made.leave('test'));
    return made;
  };

  test('sends its nodes away when it stops, and they join the next one', async () => {
    const port = await fixedPort();
    const first = await start({ port });
    const events: string[] = [];
    const node = session(first.server.address, events);
    await until(() => first.control.readiness().ready, Boolean);
    first.control.close(stopping);
    await first.server.close(100);
    expect(first.control.readiness()).toEqual({ ready: false, reason: 'the coordinator is stopping' });
    await until(
      () => node.connected,
      (connected) => !connected,
    );
    const second = await start({ port });
    await until(() => second.control.readiness().ready, Boolean);
    expect(events.filter((kind) => kind === 'welcome')).toHaveLength(2);
    await node.leave('done');
    await until(
      () => stateOf(second, 'w0')?.reason,
      (reason) => reason === 'left: done',
    );
    expect(await node.ended).toBeNull();
  });

  test('hears what a node has counted since its last report when the node says goodbye', async () => {
    const started = await start();
    let tokens = 7;
    const router = new ControlSession({
      coordinators: [started.server.address],
      token: null,
      dial: coordinatorDialer(null),
      runtime: nativeRuntime,
      hello: hello('r0', { role: 'ROUTER' }),
      report: () => {
        const said = tokens;
        tokens = 0;
        return { router: { tokens: said } };
      },
      // Never within this test.
      reportMs: 3_600_000,
      leaseMs: 60_000,
      onMessage: () => {},
      log,
    });
    atEnd(() => router.leave('test'));
    await until(() => router.connected, Boolean);
    await router.leave('done');
    await until(
      () => stateOf(started, 'r0')?.reason,
      (reason) => reason === 'left: done',
    );
    expect(started.control.cluster.members().map(({ tokens }) => tokens)).toEqual([7]);
  });

  test('is joined anew when it falls silent, not while it lets itself be heard', async () => {
    const mute = await start({ heartbeatMs: 60_000 });
    const lively = await start();
    const events: Record<string, string[]> = { mute: [], lively: [] };
    session(mute.server.address, events.mute!);
    session(lively.server.address, events.lively!);
    const welcomes = (name: string) => events[name]!.filter((kind) => kind === 'welcome').length;
    await until(
      () => welcomes('mute'),
      (count) => count >= 3,
    );
    expect(welcomes('lively')).toBe(1);
  });

  test('a session whose node can never be a member ends with the reason', async () => {
    const started = await start();
    worker(started, 'w0').report(allExperts);
    await until(() => started.control.readiness().ready, Boolean);
    expect(await session(started.server.address, []).ended).toMatchObject({ code: 'NAME_TAKEN' });
  });
});
