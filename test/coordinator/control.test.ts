import { describe, expect, test } from '@jest/globals';
import { expertsIn } from '../../services/common/layer-experts.js';
import { packUint32, unpackFloat32 } from '../../services/common/packed.js';
import { parseTopology } from '../../services/coordinator/topology.js';
import { until } from '../support/until.js';
import { allExperts, atEnd, leaseMs, RawNode, start, stateOf, worker } from './control-support.js';
import { hello, tinyModel } from './support.js';

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
    expect(node.of('assignment')[0]!.assignment).toMatchObject({ term: 1, leave: false });
    expect([...expertsIn(node.of('assignment')[0]!.assignment!.experts)]).toEqual(allExperts);

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

  test('a router gets the view at once and on each change, and the latest figures with each heartbeat', async () => {
    const started = await start({ leaseMs: 60_000 });
    const router = new RawNode(started).say({ hello: hello('r0', { role: 'ROUTER' }) });
    const timer = setInterval(() => router.say({ router: { tokens: 1, rssBytes: 77 } }), 50);
    atEnd(() => clearInterval(timer));
    await until(
      () => router.of('view').length,
      (count) => count > 0,
    );
    expect(router.of('view')[0]!.view).toMatchObject({ epoch: 0, ready: false });
    worker(started, 'w0').report(allExperts);
    const last = () => router.of('view').at(-1)!.view!;
    await until(last, ({ ready, nodes }) => ready && nodes.every(({ state }) => state === 'READY'));
    const figures = () => router.of('heartbeat').flatMap(({ heartbeat }) => heartbeat!.figures);
    await until(figures, (all) => all.some(({ name, rssBytes }) => name === 'r0' && rssBytes === 77));
    const before = router.of('view').length;
    // What was decided elsewhere may leave everything as it is.
    started.control.cluster.changed();
    const heartbeats = router.of('heartbeat').length;
    await until(
      () => router.of('heartbeat').length,
      (count) => count >= heartbeats + 3,
    );
    expect(router.of('view')).toHaveLength(before);
  });

  test('a router is told the placement when it joins and with each epoch, and not again; an index stays that of one worker', async () => {
    const started = await start();
    const router = (name: string) => new RawNode(started).say({ hello: hello(name, { role: 'ROUTER' }) });
    const views = (node: RawNode) => node.of('view').map(({ view }) => view!);
    const first = router('r0');
    const node = worker(started, 'w0').report(allExperts);
    await until(
      () => views(first).at(-1)?.ready,
      (ready) => ready === true,
    );
    const told = (node: RawNode) => views(node).filter(({ placement }) => placement !== null);
    const placement = {
      workers: ['w0'],
      layers: [0, 1].map((layer) => ({ layer, copies: new Array(8).fill(1), workers: new Array(8).fill(0) })),
    };
    expect(told(first)).toMatchObject([{ epoch: 1, placement }]);
    expect(views(first).length).toBeGreaterThan(1);
    const second = router('r1');
    await until(
      () => views(second).length,
      (count) => count > 0,
    );
    expect(views(second)[0]).toMatchObject({ epoch: 1, placement });
    node.close();
    worker(started, 'w1').report(allExperts);
    for (const one of [first, second])
      await until(
        () => views(one).at(-1)!,
        ({ epoch, ready }) => epoch > 1 && ready,
      );
    for (const one of [first, second]) {
      const epochs = told(one).map(({ epoch }) => epoch);
      expect(new Set(epochs).size).toBe(epochs.length);
      expect(told(one).at(-1)).toMatchObject({
        epoch: views(one).at(-1)!.epoch,
        placement: {
          workers: ['w0', 'w1'],
          layers: [0, 1].map((layer) => ({ layer, workers: new Array(8).fill(1) })),
        },
      });
    }
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
      [...expertsIn(node.of('assignment')[0]!.assignment!.experts)].map(({ expert }) => expert);
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
    [
      { worker: { readyChanged: true, ready: [{ layer: 0, experts: [99] }] } },
      /ready is "layer 0 expert 99"/,
    ],
    [{ worker: { readyChanged: true, ready: [{ layer: 7, experts: [0] }] } }, /ready is "layer 7 expert 0"/],
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

describe('feedback', () => {
  test('reports of routers become a bias that every router gets, also one that joins later', async () => {
    const started = await start();
    const router = new RawNode(started).say({ hello: hello('r0', { role: 'ROUTER' }) });
    await until(
      () => router.of('view').length,
      (count) => count > 0,
    );
    router.say({
      router: { loads: [{ layer: 1, rows: packUint32(Uint32Array.of(100, 0, 0, 0, 0, 0, 0, 0)) }] },
    });
    await until(
      () => router.of('bias').length,
      (count) => count > 0,
    );
    const update = router.of('bias')[0]!.bias!;
    expect(update.version).toBe(1);
    expect(update.layers.map(({ layer }) => layer)).toEqual([1]);
    const bias = [...unpackFloat32(update.layers[0]!.bias)];
    expect(bias).toHaveLength(8);
    expect(bias[0]).toBeLessThan(0);
    for (const other of bias.slice(1)) expect(other).toBeGreaterThan(0);
    const later = new RawNode(started).say({ hello: hello('r1', { role: 'ROUTER' }) });
    await until(
      () => later.of('bias').length,
      (count) => count > 0,
    );
    expect(later.of('bias')[0]!.bias).toEqual(update);
  });

  test('a router is told the layers that changed since it was told last, and one that joins later all of them', async () => {
    const started = await start();
    const router = (name: string) => new RawNode(started).say({ hello: hello(name, { role: 'ROUTER' }) });
    const first = router('r0');
    const layersOf = (node: RawNode) =>
      node.of('bias').map(({ bias }) => bias!.layers.map(({ layer }) => layer));
    for (const layer of [1, 0, 1]) {
      const before = layersOf(first).length;
      first.say({
        router: { loads: [{ layer, rows: packUint32(Uint32Array.of(100, 0, 0, 0, 0, 0, 0, 0)) }] },
      });
      await until(
        () => layersOf(first).length,
        (count) => count > before,
      );
    }
    expect(layersOf(first)).toEqual([[1], [0], [1]]);
    const later = router('r1');
    await until(
      () => layersOf(later).length,
      (count) => count > 0,
    );
    expect(layersOf(later)).toEqual([[0, 1]]);
  });

  test('a report of another shape than the model is refused', async () => {
    const started = await start();
    const router = new RawNode(started).say({ hello: hello('r0', { role: 'ROUTER' }) });
    router.say({ router: { loads: [{ layer: 0, rows: packUint32(Uint32Array.of(1, 2, 3)) }] } });
    expect(await until(() => router.error, Boolean)).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(
        'loads is "12 bytes of layer 0"; allowed: 32, 4 for each of its experts',
      ),
    });
  });

  test('a router that does not read gets the latest bias when it does, and no queue of old ones', async () => {
    // Updates of 512 KiB each fill what HTTP/2 and the sockets hold after some of them.
    const layers = Array.from({ length: 512 }, (_, layer) => ({
      ...tinyModel.layers[0]!,
      layer,
      experts: 256,
    }));
    // Encoding and decoding them holds up this process, which is both ends: its lease must outlast that.
    const started = await start({ model: { ...tinyModel, layers }, leaseMs: 60_000 });
    const router = new RawNode(started).say({ hello: hello('r0', { role: 'ROUTER' }) });
    await until(
      () => router.of('view').length,
      (count) => count > 0,
    );
    router.call.pause();
    const steps = 100;
    const rows = packUint32(Uint32Array.from({ length: 256 }, (_, expert) => (expert === 0 ? 2_000 : 0)));
    const loads = layers.map(({ layer }) => ({ layer, rows }));
    const { feedback } = started.control.cluster;
    for (let step = 1; step <= steps; step += 1) {
      router.say({ router: { loads } });
      await until(
        () => feedback.version,
        (version) => version === step * layers.length,
      );
    }
    router.call.resume();
    await until(
      () => router.of('bias').at(-1)?.bias?.version ?? 0,
      (version) => version === steps * layers.length,
    );
    expect(router.of('bias').length).toBeLessThan(steps / 2);
  });
});
