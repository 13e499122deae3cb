import { describe, expect, test } from '@jest/globals';
import { Access } from '../../services/common/access.js';
import { ExpertMetrics, figuresOf } from '../../services/common/expert-metrics.js';
import { ExpertRows } from '../../services/common/expert-rows.js';
import { type HttpOptions, startHttp } from '../../services/common/http.js';
import { counter, createRegistry, gauge, histogram } from '../../services/common/metrics.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import { usageBeside } from '../../services/runtime/system.js';
import { atEnd, errorOf, log } from './support.js';

async function serve(options: Partial<HttpOptions> = {}) {
  const server = await startHttp({
    host: '127.0.0.1',
    port: 0,
    access: new Access({}),
    insecure: false,
    registry: createRegistry('worker', 'w0', nativeRuntime.usage),
    experts: new ExpertMetrics('worker', 'w0'),
    health: () => ({ healthy: true, reason: '' }),
    ready: () => ({ ready: true, reason: '' }),
    state: () => ({ epoch: 7 }),
    log,
    expertState: () => [{ layer: 0, expert: 1 }],
    ...options,
  });
  atEnd(() => server.close());
  return server;
}

const get = async (url: string, init?: RequestInit) => {
  const response = await fetch(url, init);
  return { status: response.status, type: response.headers.get('content-type'), body: await response.text() };
};

describe('the HTTP server', () => {
  test('serves health, readiness and state', async () => {
    const state = { ready: false, reason: 'expert 3 of layer 0 has no worker' };
    const { url } = await serve({ ready: () => state });
    expect(await get(`${url}/healthz`)).toMatchObject({ status: 200 });
    expect(await get(`${url}/readyz`)).toMatchObject({ status: 503, body: `${JSON.stringify(state)}\n` });
    Object.assign(state, { ready: true, reason: '' });
    expect(await get(`${url}/readyz?verbose`)).toMatchObject({ status: 200 });
    expect(await get(`${url}/state`)).toEqual({
      status: 200,
      type: 'application/json',
      body: '{"epoch":7}\n',
    });
    expect(await get(`${url}/state/experts`)).toMatchObject({ body: '[{"layer":0,"expert":1}]\n' });
  });

  test('refuses other paths and other methods', async () => {
    const { url } = await serve();
    for (const path of ['/', '/metrics/', '/constructor', '//'])
      expect(await get(url + path)).toMatchObject({ status: 404 });
    expect(await get(`${url}/state`, { method: 'POST' })).toMatchObject({ status: 405 });
  });

  test('asks for the token where a cluster shows itself, not at the probes', async () => {
    const { url } = await serve({ access: new Access({ operator: 'secret' }) });
    for (const path of ['/metrics', '/metrics/experts', '/state', '/state/experts']) {
      expect(await get(url + path)).toMatchObject({ status: 401 });
      expect(await get(url + path, { headers: { authorization: 'Bearer secre' } })).toMatchObject({
        status: 401,
      });
      expect(await get(url + path, { headers: { authorization: 'Bearer secret' } })).toMatchObject({
        status: 200,
      });
    }
    for (const path of ['/healthz', '/readyz']) expect(await get(url + path)).toMatchObject({ status: 200 });
  });

  test('answers 500 when a state cannot be told, and goes on', async () => {
    const { url } = await serve({
      state: () => {
        throw new Error('no view yet');
      },
    });
    expect(await get(`${url}/state`)).toMatchObject({ status: 500, body: '{"error":"no view yet"}\n' });
    expect(await get(`${url}/healthz`)).toMatchObject({ status: 200 });
  });

  test('names a port in use, and a host that needs a token', async () => {
    const { url } = await serve();
    const port = Number(new URL(url).port);
    expect(await errorOf(serve({ port }))).toMatchObject({
      code: 'CONFIG_INVALID',
      details: { key: 'metricsPort', value: port },
    });
    expect(await errorOf(serve({ host: '0.0.0.0' }))).toMatchObject({
      code: 'CONFIG_INVALID',
      details: { key: 'host' },
    });
  });
});

describe('metrics', () => {
  test('carry role and name, and follow the conventions of Prometheus', async () => {
    const registry = createRegistry('router', 'r1', nativeRuntime.usage);
    counter(registry, 'tokens_total', 'Tokens.', ['layer']).inc({ layer: 0 }, 5);
    gauge(registry, 'in_flight_bytes', 'Bytes.', [], (metric) => metric.set(42));
    histogram(registry, 'gate_seconds', 'Gate.', [0.001, 1]).observe(0.5);
    const { url } = await serve({ registry });
    const { type, body } = await get(`${url}/metrics`);
    expect(type).toContain('text/plain');
    expect(body).toContain('switchyard_tokens_total{layer="0",role="router",name="r1"} 5');
    expect(body).toContain('switchyard_in_flight_bytes{role="router",name="r1"} 42');
    expect(body).toContain('switchyard_gate_seconds_bucket{le="1",role="router",name="r1"} 1');
    expect(body).toMatch(/^switchyard_event_loop_busy_seconds_total\{[^}]*\} \d/m);
    expect(body).toMatch(/^switchyard_build_info\{version="[^"]+",[^}]*\} 1$/m);
    expect(body).toContain('switchyard_healthy{role="router",name="r1"} 1');
    for (const [, name, kind] of body.matchAll(/^# TYPE (\S+) (\S+)$/gm)) {
      expect(`${name} ${kind}`).toMatch(
        kind === 'counter' ? /_total counter$/ : /(?<!_total) (gauge|histogram|summary)$/,
      );
    }
  });

  test('of single experts are served where they are asked for, as they are then', async () => {
    const registry = createRegistry('router', 'r1', nativeRuntime.usage);
    const experts = new ExpertMetrics('router', 'r1');
    const rows = new ExpertRows();
    experts.add('counter', 'rows_total', 'Rows.', () => figuresOf(rows.layers()));
    const { url } = await serve({ registry, experts });
    rows.add(3, Uint32Array.of(0, 7));
    rows.add(3, Uint32Array.of(2, 7));
    expect(await get(`${url}/metrics/experts`)).toEqual({
      status: 200,
      type: registry.contentType,
      body: [
        '# HELP switchyard_expert_rows_total Rows.',
        '# TYPE switchyard_expert_rows_total counter',
        'switchyard_expert_rows_total{layer="3",expert="0",role="router",name="r1"} 2',
        'switchyard_expert_rows_total{layer="3",expert="1",role="router",name="r1"} 14',
        '',
      ].join('\n'),
    });
    expect((await get(`${url}/metrics`)).body).not.toContain('expert="');
  });

  test('of the event loop tell busy from idle', async () => {
    const meter = usageBeside(() => 0).eventLoopMeter();
    meter();
    const until = performance.now() + 50;
    while (performance.now() < until);
    await new Promise((resolve) => setImmediate(resolve));
    expect(meter()).toBeGreaterThan(0.5);
    // Other processes may keep this one from its CPU, so that one idle moment is looked for.
    let idle = 1;
    for (let i = 0; i < 50 && idle > 0.5; i++) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      idle = meter();
    }
    expect(idle).toBeLessThan(0.5);
  });

  test('of the event loop leave out the time that it looked for messages', () => {
    let looked = 0;
    const usage = usageBeside(() => looked);
    const meter = usage.eventLoopMeter();
    const before = usage.eventLoopBusySeconds();
    // More than any test takes.
    looked = 3_600;
    expect(usage.eventLoopBusySeconds()).toBeLessThan(before);
    expect(meter()).toBe(0);
  });
});
