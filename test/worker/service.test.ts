import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, test } from '@jest/globals';
import { fixedPort } from '../../bench/fixed-port.js';
import { type Flags, LocalProcess, type ProcessRole } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';

const fixture = join(import.meta.dirname, '../fixtures/mixtral');
const scratch = mkdtempSync(join(tmpdir(), 'switchyard-worker-'));
const running: LocalProcess[] = [];

afterEach(async () => {
  await Promise.all(running.splice(0).map((process) => process.stop(5_000)));
});

afterAll(() => rmSync(scratch, { recursive: true }));

interface Service {
  process: LocalProcess;
  address: string;
  metricsUrl: string;
}

async function launch(role: ProcessRole, name: string, flags: Flags): Promise<Service> {
  const process = new LocalProcess(role, name, { name, port: 0, metricsPort: 0, ...flags }, {}, () => {});
  running.push(process);
  return { process, ...(await process.listening) };
}

const coordinator = (flags: Flags = {}) => launch('coordinator', 'coordinator', { preset: 'tiny', ...flags });
const worker = ({ address }: Pick<Service, 'address'>, name: string, flags: Flags = {}) =>
  launch('worker', name, { coordinator: address, threads: 1, ...flags });

interface Readiness {
  ready: boolean;
  reason: string;
}

async function readiness({ metricsUrl }: Service): Promise<Readiness & { status: number }> {
  const response = await fetch(`${metricsUrl}/readyz`);
  return { status: response.status, ...((await response.json()) as Readiness) };
}

/** Polls /readyz until `check` holds. */
async function untilReadiness(service: Service, check: (now: Readiness) => boolean): Promise<Readiness> {
  let last: Readiness = { ready: false, reason: 'not asked yet' };
  const end = performance.now() + 20_000;
  while (performance.now() < end) {
    last = await readiness(service);
    if (check(last)) return last;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`last readiness: ${JSON.stringify(last)}`);
}

const isReady = ({ ready }: Readiness) => ready;

/** The text that the process ended with. */
const lastWords = async ({ process }: Service) => {
  const exit = await process.exited;
  return { code: exit.code, text: process.recentLines.join('\n') };
};

const hidden = 256;

async function forward({ address }: Service, tokens: number): Promise<Buffer> {
  const rows = new Uint8Array(tokens * hidden * 2);
  // BF16 values around 1, different in every token.
  const values = new DataView(rows.buffer);
  for (let i = 0; i < tokens * hidden; i += 1) values.setUint16(2 * i, 0x3f80 + ((i * 7919) % 128), true);
  const client = await SwitchyardClient.connect(address);
  try {
    const call = await client.forward(rows, { feedback: false });
    return Buffer.from((await call.collect()).rows);
  } finally {
    await client.close();
  }
}

describe('a worker process', () => {
  test('is ready when its experts are loaded, shows what it did, and leaves in order', async () => {
    const head = await coordinator();
    const hand = await worker(head, 'w0', { maxRows: 16 });
    await untilReadiness(head, isReady);
    expect(await readiness(hand)).toEqual({ status: 200, ready: true, reason: '' });
    const health = await fetch(`${hand.metricsUrl}/healthz`);
    expect(health.status).toBe(200);

    const tokens = 100;
    await forward(head, tokens);
    const metrics = await (await fetch(`${hand.metricsUrl}/metrics`)).text();
    const computed = [...metrics.matchAll(/^switchyard_computed_rows_total\{.*\} (\d+)$/gm)];
    // Top-2 of two layers.
    expect(computed.reduce((sum, [, rows]) => sum + Number(rows), 0)).toBe(tokens * 2 * 2);
    expect(metrics).toMatch(/^switchyard_experts_loaded\{.*\} 16$/m);
    expect(metrics).toMatch(/^switchyard_in_flight_bytes\{.*\} 0$/m);
    const state = await (await fetch(`${hand.metricsUrl}/state`)).json();
    expect(state).toMatchObject({ name: 'w0', model: 'tiny', rowsQueued: 0, load: { expertsLoaded: 16 } });

    expect(await hand.process.stop(5_000)).toEqual({ code: 0, signal: null });
    const { reason } = await untilReadiness(head, (now) => !now.ready && now.reason.includes('left'));
    expect(reason).toBe(
      'layer 0 expert 0 on worker w0: the worker is dead (left: SIGTERM); 16 of 16 experts are not ready',
    );
    expect(await head.process.stop(5_000)).toEqual({ code: 0, signal: null });
  });

  test('outlives its coordinator, and the next one finds it with its experts loaded', async () => {
    const port = await fixedPort();
    const head = await coordinator({ port });
    const hand = await worker(head, 'w0');
    await untilReadiness(head, isReady);
    const before = await forward(head, 40);
    expect(new Set(before).size).toBeGreaterThan(50);
    head.process.kill('SIGKILL');
    await head.process.exited;
    const next = await coordinator({ port });
    await untilReadiness(next, isReady);
    expect((await forward(next, 40)).equals(before)).toBe(true);
    const loads = hand.process.recentLines.filter((line) => line.includes('"experts-loaded"'));
    expect(loads).toHaveLength(1);
  });

  test('holds what its memory takes; what fits nowhere is told with numbers', async () => {
    const head = await coordinator();
    await worker(head, 'w0', { memory: '1MiB' });
    const { reason } = await untilReadiness(head, ({ reason }) => reason.includes('15 of 16'));
    expect(reason).toBe(
      'layer 0 expert 1: no worker has it; layer 0 expert 1 has 786432 bytes and fits on none of the 1 workers without it: the most that is left on one of them is 262144 bytes; 15 of 16 experts are not ready',
    );
    await worker(head, 'w1');
    await untilReadiness(head, isReady);
  });

  test('ends with the reason if it has another model than the cluster, or the name of a live worker', async () => {
    const head = await coordinator();
    const stranger = await lastWords(await worker(head, 'w0', { model: fixture }));
    expect(stranger.code).not.toBe(0);
    expect(stranger.text).toMatch(/MODEL_MISMATCH/);
    expect(stranger.text).toMatch(/worker w0 has model [0-9a-f]+; this cluster serves tiny/);
    await worker(head, 'w0');
    await untilReadiness(head, isReady);
    const twin = await lastWords(await worker(head, 'w0'));
    expect(twin.code).not.toBe(0);
    expect(twin.text).toMatch(/name is \\"w0\\", which the live node at 127\.0\.0\.1:\d+/);
    expect((await readiness(head)).ready).toBe(true);
  });

  test('ends with the name of the file if the checkpoint cannot be read where it runs', async () => {
    const model = join(scratch, 'model');
    cpSync(fixture, model, { recursive: true });
    // Without a router: that would read the file as well.
    const head = await launch('coordinator', 'coordinator', { model, router: false });
    rmSync(join(model, 'model.safetensors'));
    writeFileSync(join(model, 'model.safetensors'), 'not a checkpoint');
    const { code, text } = await lastWords(await worker(head, 'w0'));
    expect(code).not.toBe(0);
    expect(text).toMatch(/MODEL_INVALID/);
    expect(text).toContain('model.safetensors');
  });

  test('waits for a coordinator that is not there yet', async () => {
    const port = await fixedPort();
    const address = `127.0.0.1:${port}`;
    const hand = await worker({ address }, 'w0');
    expect(await readiness(hand)).toEqual({
      status: 503,
      ready: false,
      reason: `not a member of the cluster of ${address} yet`,
    });
    const head = await coordinator({ port });
    await untilReadiness(head, isReady);
    const unreachable = hand.process.recentLines.filter((line) => line.includes('coordinator-unreachable'));
    expect(unreachable).toHaveLength(1);
  });
});
