import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, describe, expect, test } from '@jest/globals';
import { Deferred } from '../../services/common/lifecycle.js';
import type { Logger } from '../../services/common/log.js';
import { routerSchema } from '../../services/router/config.js';
import { startTracing } from '../../services/runtime/tracing.js';
import { OtlpReceiver } from '../support/otlp-receiver.js';
import { until } from '../support/until.js';

const ends: (() => void | Promise<void>)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

/** What is warned of. */
const warnings: { event: string; receiver: string }[] = [];
const log = { warn: (line: { event: string; receiver: string }) => warnings.push(line) } as unknown as Logger;

async function tracing(otlpEndpoint: string, traceSampling: number) {
  const started = (await startTracing('router', { name: 'r0', otlpEndpoint, traceSampling }, log))!;
  ends.push(() => started.close());
  return started;
}

async function receiver(): Promise<OtlpReceiver> {
  const started = await OtlpReceiver.start();
  ends.push(() => started.close());
  return started;
}

describe('tracing', () => {
  test('is off without an endpoint', async () => {
    const off = { name: 'r0', otlpEndpoint: null, traceSampling: 1 };
    expect(await startTracing('router', off, log)).toBeNull();
  });

  test.each([
    ['nothing', ''],
    ['what is none', 'traceparent'],
    ['a trace of zeros', `00-${'0'.repeat(32)}-${'0'.repeat(16)}-01`],
  ])('begins a trace of its own below %s, of the share that is sampled', async (_, traceparent) => {
    const { endpoint, spans } = await receiver();
    expect((await tracing(endpoint, 0)).begin('batch', traceparent, {})).toBeNull();
    const span = (await tracing(endpoint, 1)).begin('batch', traceparent, { tokens: 3 })!;
    span.end();
    const [received] = await until(
      () => spans,
      (all) => all.length === 1,
    );
    expect(received).toMatchObject({
      name: 'batch',
      parentSpanId: '',
      attributes: { 'switchyard.tokens': 3 },
    });
    expect(span.traceparent).toBe(`00-${received!.traceId}-${received!.spanId}-01`);
  });

  test('waits for a receiver that is busy, and a process that ends does not', async () => {
    const busy = await OtlpReceiver.start(() => delay(2_500));
    ends.push(() => busy.close());
    (await tracing(busy.endpoint, 1)).begin('batch', '', {})!.end();
    await until(
      () => busy.spans,
      (all) => all.length === 1,
    );
    const gate = new Deferred<void>();
    const hung = await OtlpReceiver.start(() => gate.promise);
    ends.push(() => hung.close());
    const traced = await tracing(hung.endpoint, 1);
    traced.begin('batch', '', {})!.end();
    await traced.close();
    expect(hung.spans).toEqual([]);
    gate.resolve();
  });

  test('warns once of a receiver that takes nothing, and holds nobody up', async () => {
    const gone = await receiver();
    const { endpoint } = gone;
    gone.close();
    const traced = await tracing(endpoint, 1);
    const warned = () => warnings.filter((line) => line.receiver === endpoint);
    traced.begin('batch', '', {})!.end();
    await until(
      () => warned().length,
      (count) => count === 1,
    );
    traced.begin('batch', '', {})!.end();
    await traced.close();
    expect(warned()).toMatchObject([{ event: 'traces-lost' }]);
  });
});

test('an endpoint is a URL, and a share lies between 0 and 1', () => {
  const refused = (fields: object) =>
    routerSchema.safeParse({ name: 'r', ...fields }).error!.issues[0]!.message;
  expect(refused({ otlpEndpoint: 'collector:4318' })).toContain('http://127.0.0.1:4318/v1/traces');
  expect(refused({ traceSampling: 2 })).toMatch(/1/);
});
