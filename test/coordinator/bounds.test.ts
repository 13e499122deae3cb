import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { controlLimits, plainText } from '../../services/common/control-limits.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { NodeHello } from '../../services/common/generated/switchyard/v1/NodeHello.js';
import type { NodeMessageInput } from '../../services/common/generated/switchyard/v1/NodeMessage.js';
import { groupByLayer } from '../../services/common/layer-experts.js';
import { packUint32 } from '../../services/common/packed.js';
import { checkHello } from '../../services/coordinator/check.js';
import { Pace } from '../../services/coordinator/pace.js';
import { ExpertOrder } from '../../services/model/expert-order.js';
import { until } from '../support/until.js';
import { allExperts, RawNode, type Started, start, stateOf, worker } from './control-support.js';
import { hello, tinyModel } from './support.js';

const long = 'x'.repeat(controlLimits.textCharactersMax + 1);
const huge = 'x'.repeat(10 * 1024 * 1024);

describe('a hello that makes no sense is refused', () => {
  test.each<[Partial<NodeHello>, RegExp]>([
    [{ role: 7 as never }, /^role is 7; allowed: WORKER, ROUTER$/],
    [{ name: '' }, /^name is ""/],
    [{ name: 'a b' }, /^name is "a b"/],
    [{ name: 'x'.repeat(64) }, /^name is "x+"; allowed: .*at most 63/],
    [{ name: huge }, /^name is "x{200}"… \(10485760 characters\); allowed: .*at most 63/],
    [{ address: 'nowhere' }, /^address is "nowhere"; allowed: host:port/],
    [{ address: `${huge}:1` }, /^address is "x{200}"…/],
    [{ host: long }, /^host is "x+"….*; allowed: one line of at most 512 characters$/],
    [{ host: 'a\nb' }, /^host is "a\\nb"; allowed: one line/],
    [{ device: '\u001b[2J' }, /^device is .*; allowed: one line/],
    [{ modelFingerprint: huge }, /^modelFingerprint is "x{200}"…/],
    [{ metricsUrl: 'javascript:alert(1)' }, /^metricsUrl is .*; allowed: an http URL/],
    [{ metricsUrl: `http://${huge}` }, /^metricsUrl is .*; allowed: an http URL of at most 1024 characters/],
    [{ memoryBytes: 2 ** 60 }, /^memoryBytes is more than 9007199254740991; allowed: 0 to 2\^53 - 1/],
    [{ linkSecret: Buffer.alloc(31) }, /^link_secret is "31 bytes"; allowed: 32 bytes/],
    [{ term: 2 ** 60 }, /^term is more than 9007199254740991; allowed: 0 to 2\^53 - 1/],
    [{ held: [{ layer: 0, experts: [99] }] }, /^held is "layer 0 expert 99"/],
    [{ role: 'ROUTER', linkSecret: Buffer.alloc(32) }, /^link_secret is "32 bytes"; allowed: 0 bytes/],
  ])('%#', (fields, message) => {
    expect(() => checkHello(hello('w', fields), new ExpertOrder(tinyModel.layers))).toThrow(message);
  });
});

const router = (started: Started, name = 'r0') =>
  new RawNode(started).say({ hello: hello(name, { role: 'ROUTER' }) });
const { layers } = tinyModel;
const one = (experts: number) => new Uint32Array(experts).fill(1);
const loads = layers.map(({ layer, experts }) => ({ layer, rows: packUint32(one(experts)) }));
const link = { worker: 'w0', transport: 'GRPC', lanes: 'http2', reason: '' } as const;
const tooMany = [...groupByLayer(allExperts), { layer: 0, experts: [0] }];

describe('a report that is too large, or makes no sense, costs the node its membership and changes nothing', () => {
  test.each<[string, NodeMessageInput, RegExp]>([
    ['a text of 1 MB', { leaving: { reason: 'x'.repeat(1024 * 1024) } }, /^reason is "x{200}"…/],
    ['two lines', { leaving: { reason: 'a\nb' } }, /^reason is "a\\nb"; allowed: one line/],
    ['a queue beyond 2^53', { worker: { rowsQueued: 2 ** 60 } }, /^rowsQueued is/],
    [
      'more experts than there are',
      { worker: { readyChanged: true, ready: tooMany } },
      /^ready is "17 experts"; allowed: at most 16/,
    ],
    [
      'a count beyond 2^53',
      { worker: { rowsComputed: 2 ** 60 } },
      /^rowsComputed is more than 9007199254740991/,
    ],
    ['memory beyond 2^53', { worker: { rssBytes: 2 ** 60 } }, /^rssBytes is/],
    ['seconds below 0', { worker: { computeSeconds: -1 } }, /^computeSeconds is -1; allowed: 0 to/],
    [
      'more sizes than there are',
      { worker: { rowsBySize: Array(33).fill(1) } },
      /^rowsBySize is "33 sizes"; allowed: at most 32/,
    ],
    ['seconds of a size below 0', { worker: { secondsBySize: [0, -1] } }, /^secondsBySize is -1/],
    ['seconds that are no number', { worker: { computeSeconds: Number.NaN } }, /^computeSeconds is NaN/],
    [
      'an infinite utilisation',
      { worker: { eventLoopUtilization: Number.POSITIVE_INFINITY } },
      /^eventLoopUtilization is Infinity/,
    ],
    [
      'a rate that is no number',
      { worker: { load: { bytesPerSecond: Number.NaN } } },
      /^load.bytesPerSecond is NaN/,
    ],
    ['a device below nothing', { worker: { device: { copyInSeconds: -1 } } }, /^device.copyInSeconds is -1/],
  ])('of a worker: %s', async (_, message, expected) => {
    const started = await start();
    const node = worker(started, 'w0').say(message);
    expect(await until(() => node.error, Boolean)).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(expected),
    });
    expect(stateOf(started, 'w0')!.reason!.length).toBeLessThanOrEqual(controlLimits.textCharactersMax);
    expect(stateOf(started, 'w0')).toMatchObject({ state: 'DEAD', experts: 0 });
  });

  test.each<[string, NodeMessageInput, RegExp]>([
    [
      'more layers than there are',
      { router: { loads: [...loads, loads[0]!] } },
      /^loads is "3 layers"; allowed: at most 2/,
    ],
    [
      'experts of no layer',
      { router: { loads: [{ layer: 9, rows: packUint32(one(1)) }] } },
      /^loads is "4 bytes of layer 9"; allowed: a layer of the model/,
    ],
    ['no rows of no layer', { router: { loads: [{ layer: 9 }] } }, /^loads is "0 bytes of layer 9"/],
    [
      'one layer in order and one not',
      { router: { loads: [loads[0]!, { layer: 1, rows: packUint32(one(1)) }] } },
      /^loads is "4 bytes of layer 1"/,
    ],
    ['tokens beyond 2^53', { router: { tokens: 2 ** 60 } }, /^tokens is/],
    ['a long reason', { router: { notReady: long } }, /^notReady is/],
    [
      'more links than nodes may be',
      { router: { linksChanged: true, links: new Array(controlLimits.membersMax + 1).fill(link) } },
      /^links is "4097 links"; allowed: at most 4096/,
    ],
    ['a link to no name', { router: { links: [{ ...link, worker: '../w' }] } }, /^links.worker is/],
    ['long lanes', { router: { links: [{ ...link, lanes: long }] } }, /^links.lanes is/],
    [
      'a reason for terminals',
      { router: { links: [{ ...link, reason: '\u001b]0;x\u0007' }] } },
      /^links.reason is/,
    ],
    [
      'more batches than it is to tell of',
      {
        router: { figures: { batches: new Array(controlLimits.batchesToldMax + 1).fill({ batchId: 'b' }) } },
      },
      /^figures.batches is "17 batches"; allowed: at most 16/,
    ],
    [
      'a batch of two lines',
      { router: { figures: { batches: [{ batchId: 'a\nb' }] } } },
      /^figures.batches.batchId is/,
    ],
    [
      'traffic to no name',
      { router: { figures: { traffic: [{ worker: '' }] } } },
      /^figures.traffic.worker is/,
    ],
    [
      'bytes beyond 2^53',
      { router: { figures: { traffic: [{ worker: 'w', bytesSent: 2 ** 60 }] } } },
      /^figures.traffic.bytesSent is/,
    ],
  ])('of a router: %s', async (_, message, expected) => {
    const started = await start();
    const node = router(started).say(message);
    expect(await until(() => node.error, Boolean)).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(expected),
    });
    expect(stateOf(started, 'r0')).toMatchObject({ state: 'DEAD', links: [] });
    // None of it has reached the feedback loop.
    for (const { layer, experts } of layers) {
      const window = started.control.cluster.feedback.observe(layer, one(experts));
      expect(window).toBe(false);
    }
  });

  test('a message of 10 MB is not even read', async () => {
    const started = await start({ messageBytesMax: 16 * 1024 * 1024 });
    const node = worker(started, 'w0').say({ leaving: { reason: huge } });
    expect(await until(() => node.error as SwitchyardError | null, Boolean)).toMatchObject({
      code: 'TOO_LARGE',
    });
    expect(stateOf(started, 'w0')!.reason).not.toContain('xxx');
  });
});

describe('what a node may do to the coordinator is bounded', () => {
  test('a node that floods it is cut off, and the others stay', async () => {
    const started = await start({ pace: { atOnce: 100, perSecond: 50 }, leaseMs: 20_000 });
    const good = worker(started, 'good').report([]);
    const flood = worker(started, 'flood');
    for (let sent = 0; sent < 2_000; sent += 1) flood.say({ worker: {} });
    expect(await until(() => flood.error, Boolean)).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message: 'the node sends more messages than allowed: 50 a second, 100 at once',
    });
    expect(stateOf(started, 'flood')).toMatchObject({ state: 'DEAD' });
    expect(good.error).toBeNull();
  });

  test('streams that never say hello end, and more than a bound of them are refused at once', async () => {
    const started = await start({ leaseMs: 5_000 });
    const { strangersMax } = controlLimits;
    const mute = Array.from({ length: strangersMax }, () => new RawNode(started));
    await until(
      () => started.control.strangers,
      (count) => count === strangersMax,
    );
    const late = new RawNode(started);
    expect(await until(() => late.error, Boolean)).toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
      message: expect.stringContaining(`${strangersMax} streams have not said hello`),
    });
    await until(() => mute.every(({ error }) => error !== null), Boolean);
    expect(started.control.strangers).toBe(0);
    const node = worker(started, 'w0').report([]);
    await until(() => node.of('welcome').length, Boolean);
  });

  test('a kind of message that only a newer node knows is counted and ignored', async () => {
    let unknown = 0;
    const started = await start({ onUnknown: () => (unknown += 1) });
    const node = worker(started, 'w0').say({}).say({}).report(allExperts);
    await until(() => started.control.readiness().ready, Boolean);
    expect(unknown).toBe(2);
    expect(node.error).toBeNull();
  });
});

test('a pace lets a number through at once, and then so many a second', () => {
  fc.assert(
    fc.property(fc.array(fc.nat({ max: 50 }), { minLength: 1, maxLength: 400 }), (gaps) => {
      const pace = new Pace({ atOnce: 10, perSecond: 100 }, 0);
      let now = 0;
      let taken = 0;
      for (const gap of gaps) {
        now += gap;
        if (pace.take(now)) taken += 1;
      }
      expect(taken).toBeLessThanOrEqual(10 + (now / 1000) * 100);
      if (gaps.every((gap) => gap >= 10)) expect(taken).toBe(gaps.length);
      expect(taken).toBeGreaterThanOrEqual(Math.min(10, gaps.length));
    }),
  );
});

test('a text for the coordinator is one line of bounded length, whatever it was', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 2_000 }), (text) => {
      const plain = plainText(text);
      expect(plain.length).toBeLessThanOrEqual(controlLimits.textCharactersMax);
      expect(plainText(plain)).toBe(plain);
      expect(plain).not.toMatch(/\p{Cc}/u);
    }),
  );
});
