import { afterEach, beforeEach, describe, expect, jest, test } from '@jest/globals';
import type { NodeMessageInput } from '../../services/common/generated/switchyard/v1/NodeMessage.js';
import { packUint32 } from '../../services/common/packed.js';
import { RouterReporter } from '../../services/router/report.js';
import { nativeRuntime } from '../../services/runtime/native.js';

const sources = {
  bytesInFlight: () => 0,
  links: () => ({ changes: 0, describe: () => [] }),
  notReady: () => '',
  inUse: () => ({ term: 3, epoch: 7 }),
  held: () => [],
  batches: () => ({ live: 0, oldest: [] }),
  traffic: () => [],
};

describe('the reports of a router', () => {
  beforeEach(() => {
    jest.useFakeTimers({ doNotFake: ['performance'] });
  });
  afterEach(() => {
    jest.useRealTimers();
  });

  test('gather the counts of a burst of chunks into one message', () => {
    const sent: NodeMessageInput[] = [];
    const reporter = new RouterReporter({ ...sources, runtime: nativeRuntime, bytesInFlight: () => 77 });
    reporter.start((message) => {
      sent.push(message);
      return true;
    });
    reporter.countTokens(10);
    reporter.countRows(0, Uint32Array.of(1, 2), true);
    reporter.countRows(0, Uint32Array.of(3, 4), true);
    reporter.countRows(5, Uint32Array.of(6, 0), true);
    expect(sent).toEqual([]);
    jest.advanceTimersByTime(10);
    expect(sent).toHaveLength(1);
    expect(sent[0]!.router).toMatchObject({
      tokens: 10,
      bytesInFlight: 77,
      termInUse: 3,
      epochInUse: 7,
      loads: [
        { layer: 0, rows: packUint32(Uint32Array.of(4, 6)) },
        { layer: 5, rows: packUint32(Uint32Array.of(6, 0)) },
      ],
    });
    expect(reporter.heartbeat().router).toMatchObject({ tokens: 0, loads: [], rssBytes: expect.any(Number) });
  });

  test('let few rows wait for more, until there is a row for each expert', () => {
    const sent: NodeMessageInput[] = [];
    const reporter = new RouterReporter({ ...sources, runtime: nativeRuntime });
    reporter.start((message) => sent.push(message) > 0);
    reporter.countRows(0, Uint32Array.of(1, 0, 0), true);
    jest.advanceTimersByTime(80);
    expect(sent).toHaveLength(0);
    reporter.countRows(0, Uint32Array.of(1, 1, 1), true);
    jest.advanceTimersByTime(5);
    expect(sent).toHaveLength(1);
    reporter.countRows(0, Uint32Array.of(0, 1, 1), true);
    jest.advanceTimersByTime(110);
    expect(sent).toHaveLength(2);
  });

  test('tell the rows of batches without feedback at heartbeats, apart from those that the feedback loop is to see', () => {
    const sent: NodeMessageInput[] = [];
    const reporter = new RouterReporter({ ...sources, runtime: nativeRuntime });
    reporter.start((message) => sent.push(message) > 0);
    reporter.countRows(0, Uint32Array.of(1, 2), false);
    jest.advanceTimersByTime(100);
    expect(sent).toHaveLength(0);
    reporter.countRows(0, Uint32Array.of(3, 1), true);
    jest.advanceTimersByTime(100);
    reporter.countRows(5, Uint32Array.of(7, 7), false);
    const [first, second] = [sent[0]!, reporter.heartbeat()].map(({ router }) => router!.loads);
    const packed = (...rows: number[]) => packUint32(Uint32Array.from(rows));
    expect(first).toEqual([{ layer: 0, rows: packed(4, 3), steered: packed(3, 1) }]);
    expect(second).toEqual([{ layer: 5, rows: packed(7, 7), steered: packed(0, 0) }]);
  });

  test('keep what the stream did not take for the next heartbeat', () => {
    const reporter = new RouterReporter({ ...sources, runtime: nativeRuntime });
    reporter.start(() => false);
    reporter.countRows(0, Uint32Array.of(1, 2), true);
    jest.advanceTimersByTime(10);
    reporter.countRows(0, Uint32Array.of(1, 0), true);
    reporter.stop();
    jest.advanceTimersByTime(100);
    expect(reporter.heartbeat().router!.loads).toEqual([
      { layer: 0, rows: packUint32(Uint32Array.of(2, 2)), steered: Buffer.alloc(0) },
    ]);
  });

  test('say at once, with what there is, why the router is not ready', () => {
    const sent: NodeMessageInput[] = [];
    const reporter = new RouterReporter({
      ...sources,
      runtime: nativeRuntime,
      notReady: () => `no link to ${'w'.repeat(1000)}`,
    });
    reporter.start((message) => sent.push(message) > 0);
    reporter.countRows(0, Uint32Array.of(1, 2), true);
    reporter.flush();
    jest.advanceTimersByTime(100);
    expect(sent).toHaveLength(1);
    expect(sent[0]!.router).toMatchObject({
      loads: [{ layer: 0, rows: packUint32(Uint32Array.of(1, 2)) }],
    });
    expect(sent[0]!.router!.notReady).toMatch(/^no link to w{501}$/);
  });

  test('describe the links when they changed, and to a coordinator that may not know them', () => {
    const links = { changes: 1, describe: () => [{ worker: 'w', reason: `change ${links.changes}` }] };
    const reporter = new RouterReporter({ ...sources, runtime: nativeRuntime, links: () => links });
    const described = () => {
      const { linksChanged, links } = reporter.heartbeat().router!;
      return linksChanged ? links![0]!.reason : null;
    };
    expect([described(), described()]).toEqual(['change 1', null]);
    links.changes = 2;
    expect([described(), described()]).toEqual(['change 2', null]);
    reporter.forgetReported();
    expect([described(), described()]).toEqual(['change 2', null]);
  });

  test('tell with each heartbeat, and only then, what travelled on links since the one before, and which batches are under way', () => {
    const traffic = new Map([
      ['w', 100],
      ['v', 0],
    ]);
    const oldest = [{ batchId: 'b', tokens: 9, tokensAnswered: 3, seconds: 1 }];
    const reporter = new RouterReporter({
      ...sources,
      runtime: nativeRuntime,
      held: () => [],
      batches: () => ({ live: 40, oldest }),
      traffic: () => [...traffic].map(([worker, bytesSent]) => ({ worker, bytesSent, bytesReturned: 7 })),
    });
    const told = () => reporter.heartbeat().router!.figures!.traffic!.map(({ worker }) => worker);
    expect(reporter.heartbeat().router!.figures).toMatchObject({
      batchesLive: 40,
      batches: oldest,
      traffic: [
        { worker: 'w', bytesSent: 100, bytesReturned: 7 },
        { worker: 'v', bytesSent: 0, bytesReturned: 7 },
      ],
    });
    expect(told()).toEqual([]);
    traffic.set('v', 50);
    expect([told(), told()]).toEqual([['v'], []]);
    reporter.forgetReported();
    expect(told()).toEqual(['w', 'v']);
    const sent: NodeMessageInput[] = [];
    reporter.start((message) => sent.push(message) > 0);
    reporter.flush();
    expect(sent[0]!.router!.figures).toBeUndefined();
  });
});
