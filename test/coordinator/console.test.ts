import { describe, expect, test } from '@jest/globals';
import { Access, type Tokens } from '../../services/common/access.js';
import { ExpertMetrics } from '../../services/common/expert-metrics.js';
import { type HttpServer, startHttp } from '../../services/common/http.js';
import { createRegistry } from '../../services/common/metrics.js';
import { packUint32 } from '../../services/common/packed.js';
import { Console } from '../../services/coordinator/console/console.js';
import { viewersMax } from '../../services/coordinator/console/feed.js';
import type { ConsoleChange, ConsoleState, Session } from '../../services/coordinator/console/wire.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import { systemClock } from '../../services/runtime/system.js';
import { until } from '../support/until.js';
import { allExperts, atEnd, log, RawNode, start, worker } from './control-support.js';
import { hello, tinyModel } from './support.js';

const tokens = { client: 'a-client-token', node: 'a-node-token', operator: 'an-operator-token' };

/** A coordinator's console on a server of its own. */
async function serve(given: Tokens = {}) {
  const started = await start();
  const access = new Access(given);
  const console = new Console({
    ...{ name: 'coordinator', model: tinyModel, access, insecure: false, clock: systemClock },
    cluster: () => started.control.cluster,
    whyNot: () => '',
    leaderUrl: () => '',
  });
  const server = await startHttp({
    ...{ host: '127.0.0.1', port: 0, access, insecure: false, log, console },
    registry: createRegistry('coordinator', 'coordinator', nativeRuntime.usage),
    experts: new ExpertMetrics('coordinator', 'coordinator'),
    health: () => ({ healthy: true, reason: '' }),
    ready: () => ({ ready: true, reason: '' }),
    state: () => ({}),
    expertState: () => ({}),
  });
  atEnd(() => server.close());
  atEnd(() => console.close());
  return { started, server };
}

const post = ({ url }: HttpServer, path: string, body: unknown, headers: Record<string, string> = {}) =>
  fetch(`${url}/console/${path}`, {
    method: 'POST',
    body: JSON.stringify(body),
    headers: { 'content-type': 'application/json', ...headers },
  });

/** Signs in, and returns the cookie. */
async function cookieOf(server: HttpServer, token: string): Promise<string> {
  const response = await post(server, 'session', { token });
  expect(response.status).toBe(200);
  return response.headers.get('set-cookie')!.split(';')[0]!;
}

/** A page: what it knows by now, and the messages that told it. */
class Viewer {
  readonly known: Record<string, Record<string, unknown>> = {};
  readonly messages: string[] = [];
  private readonly ending = new AbortController();

  constructor(server: HttpServer, headers: Record<string, string> = {}) {
    atEnd(() => this.ending.abort());
    void this.read(`${server.url}/console/feed`, headers).catch(() => {});
  }

  get state(): ConsoleState {
    return this.known as unknown as ConsoleState;
  }

  close(): void {
    this.ending.abort();
  }

  private async read(url: string, headers: Record<string, string>): Promise<void> {
    const { body } = await fetch(url, { headers, signal: this.ending.signal });
    let text = '';
    for await (const part of body!.pipeThrough(new TextDecoderStream())) {
      text += part;
      const messages = text.split('\n\n');
      text = messages.pop()!;
      for (const message of messages) this.take(message);
    }
  }

  private take(message: string): void {
    this.messages.push(message);
    const [, event, data] = /^event: (state|change)\ndata: (.*)$/.exec(message)!;
    if (event === 'state') for (const part of Object.keys(this.known)) delete this.known[part];
    for (const [part, values] of Object.entries(JSON.parse(data!) as ConsoleChange))
      for (const [key, value] of Object.entries(values)) {
        this.known[part] ??= {};
        if (value === null) delete this.known[part][key];
        else this.known[part][key] = value;
      }
  }
}

/** Expert after expert: the slots and states of a layer's copies. */
function copiesIn(packed: string): [expert: number, slot: number, state: number][] {
  const bytes = Buffer.from(packed, 'base64');
  const u16 = (at: number) => bytes.readUInt16LE(at * 2);
  return Array.from({ length: bytes.length / 6 }, (_, copy) => [
    u16(copy * 3),
    u16(copy * 3 + 1),
    u16(copy * 3 + 2),
  ]);
}

describe('the feed of the console', () => {
  test('tells everything to who comes, then what has changed, and the same to all', async () => {
    const { started, server } = await serve();
    worker(started, 'w0').obey();
    await until(() => started.control.readiness().ready);
    const first = new Viewer(server);
    await until(() => first.state.nodes?.['WORKER/w0']?.state === 'READY');
    expect(first.messages[0]).toMatch(/^event: state\n/);
    expect(copiesIn(first.state.copies['0']!)).toEqual(
      Array.from({ length: 8 }, (_, expert) => [expert, 0, 1]),
    );
    const second = new Viewer(server);
    const other = worker(started, 'w1').obey();
    for (const viewer of [first, second]) await until(() => viewer.state.nodes?.['WORKER/w1'] !== undefined);
    other.close();
    for (const viewer of [first, second])
      await until(
        () => viewer.state.nodes['WORKER/w1']!.state,
        (state) => state === 'DEAD',
      );
    const changes = second.messages.slice(1);
    expect(first.messages).toEqual(expect.arrayContaining(changes));
    expect(changes.every((message) => message.startsWith('event: change\n'))).toBe(true);
    const kinds = Object.values(first.state.events).map(({ kind, text }) => `${kind} ${text.split(' ')[1]}`);
    expect(kinds).toEqual(expect.arrayContaining(['joined w0', 'joined w1', 'died w1']));
  });

  test('tells traffic, batches, rows and pauses as routers report them', async () => {
    const { started, server } = await serve();
    worker(started, 'w0').report(allExperts);
    await until(() => started.control.readiness().ready);
    const viewer = new Viewer(server);
    const router = new RawNode(started).say({ hello: hello('r0', { role: 'ROUTER', host: 'far' }) });
    let beats = 0;
    const beat = (tokens: number, batch: boolean) => {
      beats += 1;
      const rows = packUint32(Uint32Array.from({ length: 8 }, (_, expert) => (expert === 3 ? tokens : 0)));
      const batches = batch ? [{ batchId: 'b', tokens: 900, tokensAnswered: 300, seconds: beats }] : [];
      const traffic =
        tokens > 0 ? [{ worker: 'w0', bytesSent: beats * 5_000, bytesReturned: beats * 1_000 }] : [];
      const figures = { batchesLive: batches.length, batches, traffic };
      const loads = tokens > 0 ? [{ layer: 0, rows, steered: rows }] : [];
      router.say({ router: { tokens, loads, figures } });
    };
    const latest = () => Object.values(viewer.state.samples ?? {}).at(-1);
    const beatUntil = async (tokens: number, batch: boolean, check: () => boolean) => {
      const timer = setInterval(() => beat(tokens, batch), 100);
      await until(check).finally(() => clearInterval(timer));
    };
    await beatUntil(
      600,
      true,
      () => (latest()?.tokensPerSecond ?? 0) > 0 && viewer.state.traffic['r0 w0'] !== undefined,
    );
    expect(viewer.state.traffic['r0 w0']!.sent).toBeGreaterThan(viewer.state.traffic['r0 w0']!.returned);
    expect(viewer.state.batches['r0 b']).toMatchObject({ tokens: 900, answered: 300 });
    expect(latest()).toMatchObject({ batches: 1, paused: 0, balancedness: 1 });
    const { peak, rates } = viewer.state.loads['0']!;
    expect(peak).toBeGreaterThan(0);
    const shares = Buffer.from(rates, 'base64');
    expect(Array.from({ length: 8 }, (_, expert) => shares.readUInt16LE(expert * 2))).toEqual([
      0, 0, 0, 65_535, 0, 0, 0, 0,
    ]);
    await beatUntil(0, true, () => latest()?.paused === 1);
    await beatUntil(0, false, () => latest()?.paused === 0 && latest()?.batches === 0);
    expect(viewer.state.batches).toEqual({});
  });

  test('goes to so many pages and no more', async () => {
    const { server } = await serve();
    const viewers = Array.from({ length: viewersMax }, () => new Viewer(server));
    for (const viewer of viewers) await until(() => viewer.messages.length > 0);
    const refused = await fetch(`${server.url}/console/feed`);
    expect([refused.status, await refused.json()]).toEqual([
      503,
      { error: expect.stringContaining(`allowed: at most ${viewersMax}`) },
    ]);
    viewers[0]!.close();
    await until(async () => {
      const again = await fetch(`${server.url}/console/feed`);
      await again.body?.cancel();
      return again.status === 200;
    });
  });
});

describe('who may see and do what in the console', () => {
  const session = async ({ url }: HttpServer, headers: Record<string, string> = {}) =>
    (await (await fetch(`${url}/console/session`, { headers })).json()) as Session;

  test('is open on this machine where there are no tokens, to its own names', async () => {
    const { server } = await serve();
    expect(await session(server)).toEqual({ view: true, operate: true, tokens: false });
    const { port } = new URL(server.url);
    const { request } = await import('node:http');
    const statusFor = (host: string) =>
      new Promise((resolve, reject) => {
        const options = { port, host: '127.0.0.1', path: '/console/session', headers: { host } };
        request(options, (response) => resolve(response.resume().statusCode))
          .on('error', reject)
          .end();
      });
    expect(await statusFor(`localhost:${port}`)).toBe(200);
    expect(await statusFor(`rebound.example:${port}`)).toBe(403);
  });

  test('is told by tokens: none, those of clients, of nodes, of operators', async () => {
    const { started, server } = await serve(tokens);
    worker(started, 'w0').obey();
    await until(() => started.control.readiness().ready);
    const mark = { worker: 'w0', mark: 'CORDONED' };
    const tries = async (headers: Record<string, string>) => {
      const feed = await fetch(`${server.url}/console/feed`, { headers });
      await feed.body?.cancel();
      return [feed.status, (await post(server, 'operate/mark', mark, headers)).status];
    };
    expect(await tries({})).toEqual([401, 401]);
    for (const [token, statuses] of [
      [tokens.client, [200, 403]],
      [tokens.operator, [200, 200]],
    ] as const) {
      expect(await tries({ cookie: await cookieOf(server, token) })).toEqual(statuses);
      expect(await tries({ authorization: `Bearer ${token}` })).toEqual(statuses);
    }
    expect(await tries({ cookie: await cookieOf(server, tokens.node) })).toEqual([403, 403]);
    expect((await post(server, 'session', { token: 'guessed' })).status).toBe(401);
    expect(started.control.cluster.plans.marks.get('w0')).toBe('CORDONED');
  });

  test('is not told by cookies that somebody made up, that are over, or of another token', async () => {
    const { server } = await serve(tokens);
    const cookie = await cookieOf(server, tokens.client);
    const [name, role, end, mark] = /^(.*)=(.*)\.(.*)\.(.*)$/.exec(cookie)!.slice(1);
    expect(role).toBe('client');
    for (const forged of [
      `${name}=operator.${end}.${mark}`,
      `${name}=client.${Number(end) + 1}.${mark}`,
      `${name}=client.${end}.`,
      `${name}=client`,
      `${name}=`,
      await cookieOf((await serve({ ...tokens, client: 'another-token' })).server, 'another-token'),
    ])
      expect(await session(server, { cookie: forged })).toMatchObject({ view: false, operate: false });
    expect(await session(server, { cookie: `a=b; ${cookie}` })).toMatchObject({ view: true, operate: false });
  });

  test('no page of another site may ask for, nor what is not JSON of the right form', async () => {
    const { started, server } = await serve();
    worker(started, 'w0').obey();
    await until(() => started.control.readiness().ready);
    const mark = { worker: 'w0', mark: 'DRAINED' };
    const statusOf = async (body: unknown, headers: Record<string, string> = {}) =>
      (await post(server, 'operate/mark', body, headers)).status;
    expect(await statusOf(mark, { 'sec-fetch-site': 'cross-site' })).toBe(403);
    expect(await statusOf(mark, { origin: 'http://elsewhere.example' })).toBe(403);
    expect(await statusOf(mark, { 'content-type': 'text/plain' })).toBe(400);
    expect(await statusOf({ ...mark, mark: 'GONE' })).toBe(400);
    expect(await statusOf({ ...mark, more: 1 })).toBe(400);
    expect(await statusOf('x'.repeat(5_000))).toBe(413);
    const stranger = await post(server, 'operate/mark', { ...mark, worker: 'w9' });
    expect([stranger.status, await stranger.json()]).toEqual([400, { error: 'worker is "w9"; allowed: w0' }]);
    expect(started.control.cluster.plans.marks.size).toBe(0);
    expect(await statusOf(mark, { origin: server.url, 'sec-fetch-site': 'same-origin' })).toBe(200);
  });
});

test('the page may load nothing from elsewhere, nor run what is in it', async () => {
  const { server } = await serve();
  const page = await fetch(server.url);
  expect(page.url).toBe(`${server.url}/console/`);
  expect(page.headers.get('content-security-policy')).toMatch(/^default-src 'none'; script-src 'self'; /);
  const html = await page.text();
  expect(html).not.toMatch(/<script(?![^>]* src=)|<style|\son[a-z]+=/);
  for (const [, path] of html.matchAll(/(?:src|href)="\.\/([^"]+)"/g))
    expect((await fetch(`${server.url}/console/${path}`)).status).toBe(200);
  const again = await fetch(`${server.url}/console/`, {
    headers: { 'if-none-match': page.headers.get('etag')! },
  });
  expect(again.status).toBe(304);
  for (const path of ['..%2fpackage.json', '../package.json', 'absent.js', 'constructor'])
    expect((await fetch(`${server.url}/console/${path}`)).status).toBe(404);
});
