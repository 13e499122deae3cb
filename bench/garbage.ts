import { createHash, randomBytes, randomInt } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { globalAgent as httpAgent, type RequestOptions, request as requestHttp } from 'node:http';
import {
  type ClientHttp2Session,
  connect as connectHttp2,
  constants,
  type OutgoingHttpHeaders,
} from 'node:http2';
import { globalAgent as httpsAgent, request as requestHttps } from 'node:https';
import { connect as connectTcp } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { table } from '../services/cli/format.js';
import { LocalCluster } from '../services/cli/local-cluster.js';
import type { LocalProcess } from '../services/cli/local-process.js';
import { services } from '../services/common/protocol.js';
import type { TlsSettings } from '../services/common/tls.js';
import { anonymousMiBOf, Collector, type Holdings } from './holdings.js';

export interface GarbageOptions {
  /** To each port: half of them with a credential. */
  requests: number;
  /** Files of all processes; null: connections are not encrypted. */
  tls: TlsSettings | null;
  log: (line: string) => void;
}

/** What a process held when half of its requests had come, and at the end. */
export interface GarbageReport {
  seconds: number;
  processes: { name: string; half: Holdings; end: Holdings }[];
  /** Answers by port, kind and status. */
  answers: ReadonlyMap<string, number>;
}

/**
 * By how much a process may have grown in the second half, once its garbage is collected. Heaps are the same but for what is compiled
 * and cached; what allocators keep of freed memory was up to 23 MiB more (bench/results/garbage.txt). A kB that is kept of each request is 100 MiB at 100,000.
 */
export const growthMax: Readonly<Holdings> = { heapMiB: 8, nativeMiB: 48, descriptors: 8 };

const lanes = 64;
/** So that all processes get garbage side by side. */
const parts = 10;
/** Streams that stand by themselves are left after this. */
const leaveMs = 200;
/** A server that does not answer what it could refuse hangs. */
const answerMsMax = 30_000;
const attemptsMax = 3;
const tokens = { client: word(), node: word(), operator: word() };
const bodyBytesMax = 2_000;

interface Target {
  process: LocalProcess;
  kind: 'grpc' | 'http';
  host: string;
  port: number;
  ca: string | null;
}

type Send = (target: Target, credential: string | null) => Promise<string>;

/** A cluster that gets garbage at every port must live, keep its memory, and compute what it computed before. */
export async function runGarbage({ requests, tls, log }: GarbageOptions): Promise<GarbageReport> {
  const node = { port: 0, metricsPort: 0, logLevel: 'error' };
  const collector = new Collector();
  const cluster = await LocalCluster.start({
    ...collector.options,
    workers: 1,
    routers: 1,
    threads: 1,
    coordinator: { preset: 'tiny', ...node },
    router: node,
    worker: node,
    tokens,
    tls,
    readyTimeoutMs: 60_000,
  });
  try {
    const targets = await targetsOf(cluster, tls);
    const expected = await batchOf(cluster);
    const answers = new Map<string, number>();
    const each = Math.ceil(requests / parts);
    const startedMs = performance.now();
    for (let part = 0; part < parts / 2; part += 1) await sendAll(targets, each, answers, log);
    const before = await collector.holdings(cluster.processes);
    for (let part = 0; part < parts / 2; part += 1) await sendAll(targets, each, answers, log);
    const seconds = (performance.now() - startedMs) / 1000;
    if ((await batchOf(cluster)) !== expected) throw new Error('a batch has another answer than before');
    const after = await collector.holdings(cluster.processes);
    const processes = cluster.processes.map(({ name }, at) => ({
      name,
      half: before[at]!,
      end: after[at]!,
    }));
    return { seconds, processes, answers };
  } finally {
    await cluster.stop();
  }
}

/** What a process may not have; empty: all is well. */
export function faultsOf({ processes }: GarbageReport): string[] {
  return processes.flatMap(({ name, half, end }) =>
    Object.entries(growthMax)
      .map(([what, most]) => ({ what: what as keyof Holdings, most }))
      .filter(({ what, most }) => end[what] - half[what] > most)
      .map(
        ({ what, most }) =>
          `${name}: ${what} ${round(half[what])} and then ${round(end[what])}; allowed: ${most} more`,
      ),
  );
}

/** A table of what each process held after half of the requests and at the end. */
export function formatHoldings({ processes }: GarbageReport): string {
  const titles = ['PROCESS', 'WHAT', 'AFTER HALF', 'AT THE END'];
  const rows = processes.flatMap(({ name, half, end }) =>
    (Object.keys(growthMax) as (keyof Holdings)[]).map((what) => [
      name,
      what,
      round(half[what]),
      round(end[what]),
    ]),
  );
  return table([titles, ...rows]);
}

const round = (value: number) => (Number.isInteger(value) ? String(value) : value.toFixed(1));

async function targetsOf(cluster: LocalCluster, tls: TlsSettings | null): Promise<Target[]> {
  const ca = tls && readFileSync(tls.ca!, 'utf8');
  const all = await Promise.all(
    cluster.processes.map(async (process) => {
      const { address, metricsUrl } = await process.listening;
      const of = (kind: Target['kind'], url: string): Target => {
        const { hostname: host, port } = new URL(url);
        return { process, kind, host, port: Number(port), ca };
      };
      return [of('grpc', `http://${address}`), of('http', metricsUrl)];
    }),
  );
  return all.flat();
}

/** So many requests to each port, a few at once. */
async function sendAll(
  targets: readonly Target[],
  count: number,
  answers: Map<string, number>,
  log: (line: string) => void,
): Promise<void> {
  for (const target of targets) {
    const startedMs = performance.now();
    const session = new Http2Lane(target);
    const ways: readonly Send[] =
      target.kind === 'grpc'
        ? [rawBytes, ...Array.from({ length: 15 }, () => session.send)]
        : [rawBytes, ...Array.from({ length: 15 }, () => garbageHttp)];
    let sent = 0;
    const lane = async () => {
      while (sent < count) {
        sent += 1;
        const credential = sent % 2 === 0 ? pick(Object.values(tokens)) : null;
        const answer = await pick(ways)(target, credential);
        const key = `${target.kind} ${answer}`;
        answers.set(key, (answers.get(key) ?? 0) + 1);
      }
    };
    await Promise.all(Array.from({ length: lanes }, lane));
    session.close();
    for (const agent of [httpAgent, httpsAgent]) agent.destroy();
    await expectAlive(target, log);
    const seconds = (performance.now() - startedMs) / 1000;
    const anonymous = anonymousMiBOf(target.process).toFixed(1);
    log(
      `${target.process.name} ${target.kind}: ${count} requests in ${seconds.toFixed(1)} s, ${anonymous} MiB`,
    );
  }
}

/** By a connection of its own: one that is kept may end as it is used. A lost connection is told, and tried again. */
async function expectAlive({ process, ca }: Target, log: (line: string) => void): Promise<void> {
  const { metricsUrl } = await process.listening;
  const { hostname: host, port } = new URL(metricsUrl);
  for (let attempt = 1; ; attempt += 1) {
    const status = await ask({ host, port, path: '/healthz', agent: false }, ca, Buffer.alloc(0));
    if (status === '200') return;
    log(`/healthz of ${process.name}, attempt ${attempt}: ${status}`);
    if (attempt === attemptsMax) throw new Error(`/healthz of ${process.name}: ${status}`);
  }
}

/** A connection that says anything. */
const rawBytes: Send = ({ host, port, ca, kind }) =>
  new Promise((resolve) => {
    const preface = kind === 'grpc' && flip() ? [Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')] : [];
    const socket =
      ca === null || flip(4) ? connectTcp(port, host) : connectTls({ host, port, ca, ALPNProtocols: ['h2'] });
    socket.on('error', () => {}).on('data', () => {});
    socket.once('close', () => resolve('connection closed'));
    for (const part of [...preface, garbageBytes()]) socket.write(part);
    if (flip()) socket.end();
    setTimeout(() => socket.destroy(), flip() ? 0 : 20);
  });

/** Requests of HTTP/2 on one connection, which is made anew when the server ends it. */
class Http2Lane {
  private session: ClientHttp2Session | null = null;

  constructor(private readonly target: Target) {}

  readonly send: Send = (_, credential) =>
    new Promise((resolve) => {
      let answer = 'no answer';
      try {
        const stream = this.open().request(garbageHeaders(credential), { endStream: false });
        const leave = setTimeout(() => stream.close(constants.NGHTTP2_CANCEL), leaveMs);
        // Node may forget one that both ends close while something is written.
        const forget = setTimeout(() => stream.destroy(), 2 * leaveMs);
        stream.on('response', (headers) => {
          answer = `${headers[':status']} ${headers['grpc-status'] ?? ''}`.trim();
        });
        stream.on('trailers', (headers) => {
          answer = `200 ${headers['grpc-status']}`;
        });
        stream.on('error', () => {}).on('data', () => {});
        stream.once('close', () => {
          clearTimeout(leave);
          clearTimeout(forget);
          resolve(answer);
        });
        for (let parts = randomInt(3); parts > 0; parts -= 1) stream.write(garbageMessage());
        stream.end();
        if (flip(20)) stream.close(constants.NGHTTP2_CANCEL);
      } catch {
        resolve('refused by the client itself');
      }
    });

  close(): void {
    this.session?.destroy();
  }

  private open(): ClientHttp2Session {
    if (this.session !== null && !this.session.closed && !this.session.destroyed) return this.session;
    const { host, port, ca } = this.target;
    const url = `${ca === null ? 'http' : 'https'}://${host}:${port}`;
    this.session = connectHttp2(url, ca === null ? {} : { ca });
    this.session.on('error', () => {});
    return this.session;
  }
}

const garbageHttp: Send = ({ host, port, ca }, credential) => {
  const headers = credential === null ? {} : { authorization: `Bearer ${credential}` };
  const body = flip() ? Buffer.from(garbageJson()) : garbageBytes();
  const method = pick(['GET', 'POST', 'DELETE', 'PUT', 'HEAD', 'OPTIONS', 'PROPFIND', 'TRACE']);
  const path = pick(httpPaths) + pick(['', '', `?${word()}`, `/${word()}`, '/../..', '%00', '%', '\u00e9']);
  const more = flip()
    ? { [word().toLowerCase()]: word(), cookie: `switchyard-console=${garbageJson()}` }
    : {};
  // Without a length the body is the next request on the connection.
  const kind = flip(8) ? {} : { 'content-type': 'application/json', 'content-length': body.length };
  try {
    return ask({ host, port, method, path, headers: { ...headers, ...more, ...kind } }, ca, body);
  } catch {
    return Promise.resolve('refused by the client itself');
  }
};

/** Resolves with the status, or what the connection failed with. A stream of events is left once it has begun. */
function ask(options: RequestOptions, ca: string | null, body: Buffer): Promise<string> {
  return new Promise((resolve, reject) => {
    const call = ca === null ? requestHttp(options) : requestHttps({ ...options, ca });
    const late = setTimeout(() => {
      reject(new Error(`no answer in ${answerMsMax} ms: ${options.method} ${options.path}`));
      call.destroy();
    }, answerMsMax);
    let status = '';
    const end = (answer: string) => {
      clearTimeout(late);
      resolve(status || answer);
    };
    call.once('response', (response) => {
      status = String(response.statusCode);
      const leave = setTimeout(() => response.destroy(), leaveMs);
      response.on('error', () => {}).resume();
      response.once('close', () => {
        clearTimeout(leave);
        end(status);
      });
    });
    call.on('error', ({ code = '' }: NodeJS.ErrnoException) => end(code || 'error'));
    call.end(body);
  });
}

const methods = Object.values(services).flatMap((service) => Object.values(service).map(({ path }) => path));
const grpcPaths = [...methods, '/grpc.health.v1.Health/Check', '/grpc.health.v1.Health/Watch', '/', '/a/b'];
const httpPaths = [
  ...['/', '/healthz', '/readyz', '/metrics', '/metrics/experts', '/state', '/state/experts', '/console/'],
  ...['/console/session', '/console/feed', '/console/operate/mark', '/console/operate/rebalance', '//', '*'],
];

function garbageHeaders(credential: string | null): OutgoingHttpHeaders {
  const grpc = { 'content-type': 'application/grpc', te: 'trailers' };
  return {
    ':method': flip(20) ? pick(['GET', 'PUT', 'BREW']) : 'POST',
    ':path': flip(10) ? `/${word()}/${word()}` : pick(grpcPaths),
    ...(flip(20) ? { 'content-type': word() } : grpc),
    ...(credential !== null && { authorization: `Bearer ${credential}` }),
    ...(flip(5) && { 'grpc-timeout': pick(['1n', '5S', word(), '99999999999H', '-1S']) }),
    ...(flip(10) && { 'grpc-encoding': pick(['gzip', 'identity', word()]) }),
    ...(flip(10) && { traceparent: word(), [`${word().toLowerCase()}-bin`]: word() }),
  };
}

/** A message of gRPC whose flag and length are right or not, around bytes that protobuf may take. */
function garbageMessage(): Buffer {
  const body = flip() ? garbageBytes() : protobuf();
  const head = Buffer.alloc(5);
  head[0] = flip(20) ? randomInt(256) : 0;
  head.writeUInt32BE(flip(10) ? randomInt(2 ** 32) : body.length, 1);
  return flip(20) ? body : Buffer.concat([head, body]);
}

/** Fields of any number and kind, and texts within texts. */
function protobuf(depth = 0): Buffer {
  const fields = Array.from({ length: randomInt(6) }, () => {
    const number = 1 + randomInt(20);
    if (flip(3)) return Buffer.from([(number << 3) & 0x7f, ...varint()]);
    const inside = depth < 3 && flip() ? protobuf(depth + 1) : randomBytes(randomInt(40));
    return Buffer.concat([
      Buffer.from([((number << 3) | 2) & 0x7f, inside.length & 0x7f]),
      inside.subarray(0, 127),
    ]);
  });
  return Buffer.concat(fields);
}

function varint(): number[] {
  return [...Array.from(randomBytes(randomInt(9)), (byte) => byte | 0x80), randomInt(128)];
}

function garbageJson(): string {
  const value = (): unknown =>
    pick<() => unknown>([
      () => word(),
      () => Math.random() * 1e9 - 5e8,
      () => null,
      () => [value()],
      () => ({ [pick(['worker', 'mark', 'token', '__proto__', word()])]: value() }),
    ])();
  return JSON.stringify(value());
}

const garbageBytes = () => randomBytes(randomInt(bodyBytesMax));

/** Once in `times`. */
function flip(times = 2): boolean {
  return randomInt(times) === 0;
}

function pick<T>(list: readonly T[]): T {
  return list[randomInt(list.length)]!;
}

/** Letters and digits. */
function word(): string {
  return `w${randomBytes(12).toString('hex')}`;
}

/** The digest of what a batch is answered. */
async function batchOf(cluster: LocalCluster): Promise<string> {
  const rows = new Uint8Array(600 * 256 * 2).fill(0x3c);
  const call = await cluster.client.forward(rows, { sequences: 6, feedback: false });
  return createHash('sha256')
    .update((await call.collect()).rows)
    .digest('hex');
}
