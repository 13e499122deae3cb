import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { overlap, readTrace, union } from '../../bench/hosts/timeline.js';
import { Trace } from '../../services/common/trace.js';
import { log } from '../common/support.js';
import { startCluster } from '../support/cluster.js';

const directory = mkdtempSync(join(tmpdir(), 'switchyard-trace-'));
afterAll(() => rmSync(directory, { recursive: true }));

const hidden = 256;

test('router and worker write what they did with every token batch', async () => {
  const files = { worker: join(directory, 'worker.json'), router: join(directory, 'router.json') };
  const cluster = await startCluster({
    workers: 1,
    worker: { trace: files.worker },
    coordinator: { preset: 'tiny', trace: files.router },
  });
  const rows = new Uint8Array(512 * hidden * 2);
  await (await cluster.client.forward(rows, { chunkTokens: 256 })).collect();
  await cluster.stop();

  const worker = readTrace(readFileSync(files.worker, 'utf8'));
  const named = (name: string) => worker.filter((span) => span.name === name);
  // Two chunks through two layers.
  expect(named('send')).toHaveLength(4);
  expect(named('send')[0]!.lane).toBe('send to coordinator');
  // gRPC does not tell when the first byte of a message came.
  expect(named('receive')).toHaveLength(process.env.SWITCHYARD_TRANSPORT === 'ucx' ? 4 : 0);
  const compute = worker.filter(({ lane }) => lane === 'compute');
  expect(compute.length).toBeGreaterThan(0);
  for (const { start, end } of worker) expect(end).toBeGreaterThanOrEqual(start);

  const stages = readTrace(readFileSync(files.router, 'utf8'));
  for (const name of ['route', 'exchange', 'combine'])
    expect(stages.filter((span) => span.name === name)).toHaveLength(4);
  // One clock for all: what the worker computed lies in the router's exchanges.
  const exchanges = union(stages.filter(({ name }) => name === 'exchange'));
  const computed = union(compute);
  const length = computed.reduce((sum, { start, end }) => sum + end - start, 0);
  expect(overlap(exchanges, computed)).toBeCloseTo(length, 3);
});

test('a trace ends at its bound and says how much is missing', async () => {
  const file = join(directory, 'long.json');
  const trace = Trace.open(file, 'test', log)!;
  for (let index = 0; index < 200_005; index++)
    trace.span('lane', 'step', { start: index, end: index + 1 }, {});
  await trace.close();
  await trace.close();
  const text = readFileSync(file, 'utf8');
  expect(readTrace(text)).toHaveLength(200_000);
  expect((JSON.parse(text) as { args: unknown }[]).at(-1)!.args).toEqual({
    events: 200_000,
    eventsLeftOut: 5,
  });
});

test('a file that cannot be written is refused by name', () => {
  const file = join(directory, 'missing', 'trace.json');
  expect(() => Trace.open(file, 'test', log)).toThrow(
    expect.objectContaining({
      code: 'CONFIG_INVALID',
      message: expect.stringContaining(`trace is "${file}"`),
    }),
  );
});
