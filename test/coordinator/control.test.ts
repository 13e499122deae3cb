import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import { afterEach, describe, expect, test } from '@jest/globals';
import type { CoordinatorMessage } from '../../services/common/generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeMessageInput } from '../../services/common/generated/switchyard/v1/NodeMessage.js';
import { connect } from '../../services/common/grpc-channel.js';
import { type GrpcServer, startGrpcServer } from '../../services/common/grpc-server.js';
import { createLogger } from '../../services/common/log.js';
import { clients, services } from '../../services/common/protocol.js';
import { ControlSession } from '../../services/common/session.js';
import { fromServiceError } from '../../services/common/status.js';
import { Control } from '../../services/coordinator/control.js';
import { describeModel } from '../../services/coordinator/describe.js';
import { parseTopology, type Topology } from '../../services/coordinator/topology.js';
import type { ModelSpec } from '../../services/model/spec.js';
import { hello, tinyModel, until } from './support.js';

const log = createLogger('test', 'test', 'silent');
const leaseMs = 600;
const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

interface Started {
  control: Control;
  server: GrpcServer;
}

async function start(
  options: {
    workers?: number;
    topology?: Topology;
    port?: number;
    heartbeatMs?: number;
    model?: ModelSpec;
    leaseMs?: number;
  } = {},
): Promise<Started> {
  const model = options.model ?? tinyModel;
  const control = new Control({
    model,
    description: describeModel(model),
    workers: options.workers ?? 1,
    topology: options.topology ?? null,
    leaseMs: options.leaseMs ?? leaseMs,
    heartbeatMs: options.heartbeatMs ?? 100,
    feedbackOn: true,
    feedback: { rate: 0.01, limit: 1, windowRowsPerExpert: 4 },
    log,
    onReady: () => {},
  });
  cleanups.push(() => control.close());
  const server = await startGrpcServer({
    host: '127.0.0.1',
    port: options.port ?? 0,
    token: null,
    insecure: false,
    messageBytesMax: 2 ** 20,
    services: [{ definition: services.Coordinator, implementation: control.implementation }],
    log,
  });
  cleanups.push(() => server.close(100));
  return { control, server };
}

/** A node that speaks the protocol by hand, so that it can also misbehave. */
class RawNode {
  readonly received: CoordinatorMessage[] = [];
  error: Error | null = null;
  readonly call: ClientDuplexStream<NodeMessageInput, CoordinatorMessage>;
  private readonly client;
  private timer: NodeJS.Timeout | null = null;

  constructor({ server }: Started) {
    this.client = connect(clients.Coordinator, server.address, { token: null, messageBytesMax: 2 ** 20 });
    this.call = this.client.Join();
    this.call.on('data', (message: CoordinatorMessage) => this.received.push(message));
    this.call.on('error', (error) => {
      this.error = fromServiceError(error);
    });
    cleanups.push(() => this.close());
  }

  say(message: NodeMessageInput): this {
    this.call.write(message);
    return this;
  }

  /** Reports often, as a worker that holds these experts does. */
  report(ready: { layer: number; expert: number }[]): this {
    this.silence();
    let readyChanged = true;
    this.timer = setInterval(() => {
      this.say({ worker: { ready: readyChanged ? ready : [], readyChanged } });
      readyChanged = false;
    }, 50);
    return this;
  }

  silence(): void {
    if (this.timer !== null) clearInterval(this.timer);
    this.timer = null;
  }

  of(kind: NonNullable<CoordinatorMessage['kind']>): CoordinatorMessage[] {
    return this.received.filter((message) => message.kind === kind);
  }

  close(): void {
    this.silence();
    this.call.cancel();
    this.client.close();
  }
}

const allExperts = tinyModel.layers.flatMap(({ layer, experts }) =>
  Array.from({ length: experts }, (_, expert) => ({ layer, expert })),
);

const worker = (started: Started, name: string, fields = {}) =>
  new RawNode(started).say({ hello: hello(name, fields) });

const stateOf = ({ control }: Started, name: string) =>
  control.view.nodes!.find((node) => node.name === name);

describe('joining', () => {
  test('a worker is welcomed with the model and told its experts; ready is when it has reported them all', async () => {
    const started = await start();
    expect(started.control.readiness().reason).toBe(
      '0 of the 1 expected workers have joined, so no expert is placed yet',
    );
    const node = worker(started, 'w0');
    await until(
      () => node.of('assignment').length,
      (count) => count > 0,
    );
    expect(node.received[0]).toMatchObject({
      kind: 'welcome',
      welcome: { model: { name: 'tiny', fingerprint: tinyModel.fingerprint, hidden: 256 }, feedback: true },
    });
    expect(node.of('assignment')[0]!.assignment).toMatchObject({ epoch: 1, experts: allExperts });

    node.report(allExperts.slice(1));
    await until(
      () => started.control.readiness().reason,
      (reason) => !reason.includes('16 of 16'),
    );
    expect(started.control.readiness()).toEqual({
      ready: false,
      reason: 'layer 0 expert 0 on worker w0: not loaded yet',
    });
    expect(stateOf(started, 'w0')).toMatchObject({ state: 'LOADING', experts: 15 });

    node.report(allExperts);
    await until(() => started.control.readiness().ready, Boolean);
    expect(stateOf(started, 'w0')).toMatchObject({ state: 'READY', experts: 16 });
  });

  test('a router gets the view at once, on each change, and with the latest figures', async () => {
    const started = await start();
    const router = new RawNode(started).say({ hello: hello('r0', { role: 'ROUTER' }) });
    const timer = setInterval(() => router.say({ router: { tokens: 1, rssBytes: 77 } }), 50);
    cleanups.push(() => clearInterval(timer));
    await until(
      () => router.of('view').length,
      (count) => count > 0,
    );
    expect(router.of('view')[0]!.view).toMatchObject({ epoch: 0, ready: false });
    worker(started, 'w0').report(allExperts);
    const last = () => router.of('view').at(-1)!.view!;
    await until(last, (view) => view.ready);
    expect(last().placements).toHaveLength(16);
    expect(last().placements.every(({ workers }) => workers.length === 1 && workers[0] === 'w0')).toBe(true);
    await until(last, (view) => view.nodes.some(({ name, rssBytes }) => name === 'r0' && rssBytes === 77));
  });

  test('experts are spread over the expected workers, whoever joins first', async () => {
    const started = await start({ workers: 2 });
    const second = worker(started, 'w1');
    await until(
      () => second.of('welcome').length,
      (count) => count > 0,
    );
    expect(second.of('assignment')).toEqual([]);
    const first = worker(started, 'w0');
    await until(
      () => first.of('assignment').length + second.of('assignment').length,
      (count) => count === 2,
    );
    const expertsOf = (node: RawNode) =>
      node.of('assignment')[0]!.assignment!.experts.map(({ expert }) => expert);
    expect(expertsOf(first)).toEqual([0, 2, 4, 6, 0, 2, 4, 6]);
    expect(expertsOf(second)).toEqual([1, 3, 5, 7, 1, 3, 5, 7]);
  });

  test.each([
    [
      'a name of a live node',
      { name: 'w0' },
      'NAME_TAKEN',
      /name is "w0", which the live node at 127\.0\.0\.1:4000/,
    ],
    [
      'another model',
      { modelFingerprint: 'abc' },
      'MODEL_MISMATCH',
      /worker w1 has model abc; this cluster serves tiny/,
    ],
    ['a name that is none', { name: '../x' }, 'INVALID_ARGUMENT', /name is "\.\.\/x"; allowed/],
    ['a host beyond the topology', { host: 'mars' }, 'INVALID_ARGUMENT', /host is "mars"; allowed: .*local/],
  ])('%s is refused, and the cluster is unharmed', async (_, fields, code, message) => {
    const topology = parseTopology('hosts: [{ name: local, devices: [cpu, cpu] }]', 'f.yaml');
    const started = await start({ topology });
    worker(started, 'w0').report(allExperts);
    await until(() => started.control.readiness().ready, Boolean);
    const intruder = worker(started, 'w1', fields);
    expect(await until(() => intruder.error, Boolean)).toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    expect(started.control.readiness().ready).toBe(true);
    expect(started.control.view.nodes).toHaveLength(1);
  });

  test('a first message that is no hello, and no message at all, end the stream', async () => {
    const started = await start();
    const early = new RawNode(started).say({ worker: {} });
    expect(await until(() => early.error, Boolean)).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('kind is "worker"; allowed: hello'),
    });
    const mute = new RawNode(started);
    expect(await until(() => mute.error, Boolean)).toMatchObject({
      code: 'DEADLINE_EXCEEDED',
      message: `no hello within ${leaseMs} ms`,
    });
  });

  test.each([
    [{ worker: { readyChanged: true, ready: [{ layer: 0, expert: 99 }] } }, /ready is "layer 0 expert 99"/],
    [{ worker: { readyChanged: true, ready: [{ layer: 7, expert: 0 }] } }, /ready is "layer 7 expert 0"/],
    [{ router: { loads: [] } }, /kind is "router"/],
    [{ hello: hello('w0') }, /kind is "hello"/],
  ])('a report that makes no sense costs the node its membership: %j', async (message, expected) => {
    const started = await start();
    const node = worker(started, 'w0').say(message);
    expect(await until(() => node.error, Boolean)).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(expected),
    });
    expect(stateOf(started, 'w0')).toMatchObject({ state: 'DEAD', reason: expect.stringMatching(expected) });
  });
});

describe('the end of a node', () => {
  const ready = async (started: Started, name = 'w0') => {
    const node = worker(started, name).report(allExperts);
    await until(() => started.control.readiness().ready, Boolean);
    return node;
  };

  test('a stream that breaks ends it at once', async () => {
    const started = await start();
    const node = await ready(started);
    const begin = performance.now();
    node.close();
    await until(
      () => stateOf(started, 'w0')?.state,
      (state) => state === 'DEAD',
    );
    expect(performance.now() - begin).toBeLessThan(leaseMs / 2);
    expect(started.control.readiness().reason).toMatch(
      /^layer 0 expert 0 on worker w0: the worker is dead \(its control stream ended without a goodbye\); 16 of 16 experts are not ready$/,
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
    expect(tookMs).toBeLessThan(leaseMs + 1_000);
    expect(stateOf(started, 'w0')!.reason).toMatch(/^silent for \d+ ms; allowed: 600 ms$/);
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
    expect(started.control.readiness().reason).toContain('worker w0: the worker is leaving: SIGTERM');
    node.silence();
    node.call.end();
    await until(
      () => stateOf(started, 'w0')?.state,
      (state) => state === 'DEAD',
    );
    expect(stateOf(started, 'w0')!.reason).toBe('left: SIGTERM');
    expect(node.error).toBeNull();
  });

  test('it gets its experts back when it returns, in a new epoch', async () => {
    const started = await start({ workers: 2 });
    const nodes = ['w0', 'w1'].map((name) => worker(started, name));
    await until(
      () => nodes[0]!.of('assignment').length,
      (count) => count > 0,
    );
    const before = nodes[0]!.of('assignment')[0]!.assignment!;
    nodes[0]!.close();
    await until(
      () => stateOf(started, 'w0')?.state,
      (state) => state === 'DEAD',
    );
    const again = worker(started, 'w0');
    await until(
      () => again.of('assignment').length,
      (count) => count > 0,
    );
    const after = again.of('assignment')[0]!.assignment!;
    expect(after.experts).toEqual(before.experts);
    expect(after.epoch).toBeGreaterThan(before.epoch);
  });

  test('a new worker takes its share over, and it has none when it returns', async () => {
    const started = await start();
    const node = await ready(started);
    node.close();
    await until(
      () => stateOf(started, 'w0')?.state,
      (state) => state === 'DEAD',
    );
    const heir = await ready(started, 'spare');
    expect(heir.of('assignment')[0]!.assignment!.experts).toEqual(allExperts);
    const again = worker(started, 'w0');
    await until(
      () => again.of('assignment').length,
      (count) => count > 0,
    );
    expect(again.of('assignment')[0]!.assignment!.experts).toEqual([]);
    expect(stateOf(started, 'w0')).toMatchObject({
      state: 'JOINING',
      reason: 'no share of the experts is open',
    });
    expect(started.control.readiness().ready).toBe(true);
  });

  test('a process that is stopped (SIGSTOP) is dead after the lease, and a member again when it goes on', async () => {
    const started = await start();
    const child = spawnNode(started.server.address);
    await until(() => started.control.readiness().ready, Boolean, 20_000);
    child.kill('SIGSTOP');
    const begin = performance.now();
    await until(
      () => stateOf(started, 'child')?.state,
      (state) => state === 'DEAD',
    );
    expect(performance.now() - begin).toBeLessThan(leaseMs + 1_000);
    expect(stateOf(started, 'child')!.reason).toMatch(/^silent for/);
    child.kill('SIGCONT');
    await until(() => started.control.readiness().ready, Boolean, 10_000);
    child.kill('SIGKILL');
    await until(
      () => stateOf(started, 'child')?.state,
      (state) => state === 'DEAD',
    );
    expect(stateOf(started, 'child')!.reason).toMatch(/^its control stream ended/);
  }, 40_000);
});

describe('feedback', () => {
  test('reports of routers become a bias that every router gets, also one that joins later', async () => {
    const started = await start();
    const router = new RawNode(started).say({ hello: hello('r0', { role: 'ROUTER' }) });
    await until(
      () => router.of('view').length,
      (count) => count > 0,
    );
    router.say({ router: { loads: [{ layer: 1, rows: [100, 0, 0, 0, 0, 0, 0, 0] }] } });
    await until(
      () => router.of('bias').length,
      (count) => count > 0,
    );
    const update = router.of('bias')[0]!.bias!;
    expect(update.version).toBe(1);
    expect(update.layers.find(({ layer }) => layer === 0)!.bias).toEqual(new Array(8).fill(0));
    const { bias } = update.layers.find(({ layer }) => layer === 1)!;
    expect(bias[0]).toBeLessThan(0);
    for (const other of bias.slice(1)) expect(other).toBeGreaterThan(0);
    const later = new RawNode(started).say({ hello: hello('r1', { role: 'ROUTER' }) });
    await until(
      () => later.of('bias').length,
      (count) => count > 0,
    );
    expect(later.of('bias')[0]!.bias).toEqual(update);
  });

  test('a report of another shape than the model is refused', async () => {
    const started = await start();
    const router = new RawNode(started).say({ hello: hello('r0', { role: 'ROUTER' }) });
    router.say({ router: { loads: [{ layer: 0, rows: [1, 2, 3] }] } });
    expect(await until(() => router.error, Boolean)).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('loads is "3 experts of layer 0"; allowed: 8 experts'),
    });
  });

  test('a router that does not read gets the latest bias when it does, and no queue of old ones', async () => {
    // Updates of 512 KiB each fill what HTTP/2 and the sockets hold after some of them.
    const layers = Array.from({ length: 512 }, (_, layer) => ({ layer, experts: 256 }));
    // Encoding and decoding them holds up this process, which is both ends: its lease must outlast that.
    const started = await start({ model: { ...tinyModel, layers }, leaseMs: 60_000 });
    const router = new RawNode(started).say({ hello: hello('r0', { role: 'ROUTER' }) });
    await until(
      () => router.of('view').length,
      (count) => count > 0,
      30_000,
    );
    router.call.pause();
    const steps = 100;
    const rows = Array.from({ length: 256 }, (_, expert) => (expert === 0 ? 2_000 : 0));
    const { feedback } = started.control.cluster;
    for (let step = 1; step <= steps; step += 1) {
      router.say({ router: { loads: [{ layer: 0, rows }] } });
      await until(
        () => feedback.version,
        (version) => version === step,
        30_000,
      );
    }
    router.call.resume();
    await until(
      () => router.of('bias').at(-1)?.bias?.version ?? 0,
      (version) => version === steps,
      30_000,
    );
    expect(router.of('bias').length).toBeLessThan(steps / 2);
  }, 60_000);
});

describe('a coordinator that comes and goes', () => {
  const session = (address: string, events: string[]) => {
    const made = new ControlSession({
      coordinator: address,
      token: null,
      hello: hello('w0'),
      report: () => ({ worker: { ready: allExperts, readyChanged: true } }),
      reportMs: 50,
      leaseMs,
      onMessage: (message) => {
        if (message.kind) events.push(message.kind);
      },
      log,
    });
    cleanups.push(() => made.leave('test'));
    return made;
  };

  test('sends its nodes away when it stops, and they join the next one', async () => {
    const first = await start();
    const events: string[] = [];
    const node = session(first.server.address, events);
    await until(() => first.control.readiness().ready, Boolean);
    first.control.close();
    await first.server.close(100);
    expect(first.control.readiness()).toEqual({ ready: false, reason: 'the coordinator is draining' });
    await until(
      () => node.connected,
      (connected) => !connected,
    );
    const second = await start({ port: first.server.port });
    await until(() => second.control.readiness().ready, Boolean, 10_000);
    expect(events.filter((kind) => kind === 'welcome')).toHaveLength(2);
    await node.leave('done');
    await until(
      () => stateOf(second, 'w0')?.reason,
      (reason) => reason === 'left: done',
    );
    expect(await node.ended).toBeNull();
  }, 20_000);

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
  }, 10_000);

  test('a session whose node can never be a member ends with the reason', async () => {
    const started = await start();
    worker(started, 'w0').report(allExperts);
    await until(() => started.control.readiness().ready, Boolean);
    expect(await session(started.server.address, []).ended).toMatchObject({ code: 'NAME_TAKEN' });
  });
});

/** A node in a process of its own. */
function spawnNode(address: string): ChildProcess {
  const program = `
    import { ControlSession } from './dist/services/common/session.js';
    import { createLogger } from './dist/services/common/log.js';
    new ControlSession({
      coordinator: '${address}', token: null, hello: ${JSON.stringify(hello('child'))},
      report: () => ({ worker: { readyChanged: true, ready: ${JSON.stringify(allExperts)} } }),
      reportMs: 50, leaseMs: ${leaseMs}, onMessage: () => {}, log: createLogger('worker', 'child', 'silent'),
    });`;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], { stdio: 'inherit' });
  cleanups.push(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
  return child;
}
