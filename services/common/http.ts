import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http';
import { createServer as createSecureServer, type Server as HttpsServer } from 'node:https';
import { type AddressInfo, isIPv6 } from 'node:net';
import { type Access, assertBindAllowed } from './access.js';
import { certificateOf } from './certificate.js';
import { asSwitchyardError } from './errors.js';
import type { ExpertMetrics } from './expert-metrics.js';
import { bindError } from './grpc-server.js';
import type { Logger } from './log.js';
import { gauge, type Registry } from './metrics.js';
import { guardHandshakes, type Tls } from './tls.js';

export interface HttpOptions {
  host: string;
  /** 0: a free one. */
  port: number;
  /** Who may read metrics and state; probes need no credential. */
  access: Access;
  insecure: boolean;
  /** Default: connections are not encrypted. */
  tls?: Tls | null;
  log: Logger;
  registry: Registry;
  experts: ExpertMetrics;
  health: () => { healthy: boolean; reason: string };
  ready: () => { ready: boolean; reason: string };
  /** What /state shows as JSON, and /state/experts of every expert. */
  state: () => unknown;
  expertState: () => unknown;
  /** Serves the paths below /console, which say themselves who may call them; without it there are none. */
  console?: HttpPages;
}

export interface HttpPages {
  /** What `Access` knows its paths by. */
  readonly paths: readonly string[];
  handle(request: IncomingMessage, response: ServerResponse): Promise<void>;
}

export interface HttpServer {
  /** http://host:port, or https. */
  readonly url: string;
  close(): Promise<void>;
}

type Answer = { status: number; type: string; body: string };

const json = (status: number, value: unknown): Answer => ({
  status,
  type: 'application/json',
  body: `${JSON.stringify(value)}\n`,
});

const consolePattern = /^\/(console(\/.*)?)?(\?.*)?$/;

/**
 * Serves GET /metrics (Prometheus), /healthz (503 and what stands still), /readyz (503 and the reason until
 * ready) and /state (JSON). Of single experts /metrics/experts and /state/experts tell, since there may be tens of
 * thousands. Throws CONFIG_INVALID as startGrpcServer does.
 */
export async function startHttp(options: HttpOptions): Promise<HttpServer> {
  const { host, port, access, tls = null, log, console: pages } = options;
  const routes: Record<string, () => Answer | Promise<Answer>> = {
    '/healthz': () => health(options),
    '/readyz': () => readiness(options),
    '/metrics': () => metrics(options.registry),
    '/metrics/experts': () => ({
      status: 200,
      type: options.registry.contentType,
      body: options.experts.text(),
    }),
    '/state': () => json(200, options.state()),
    '/state/experts': () => json(200, options.expertState()),
  };
  assertBindAllowed(host, access, options.insecure, [...Object.keys(routes), ...(pages?.paths ?? [])]);
  probeGauges(options);

  async function answer(request: IncomingMessage): Promise<Answer> {
    if (request.method !== 'GET' && request.method !== 'HEAD')
      return json(405, { error: 'only GET is served' });
    const path = (request.url ?? '').split('?')[0] ?? '';
    const route = Object.hasOwn(routes, path) ? routes[path] : undefined;
    if (!route) return json(404, { error: `no such path; there are ${Object.keys(routes).join(' ')}` });
    try {
      access.check(path, request.headers.authorization, certificateOf(request.socket));
    } catch (error) {
      const { code, message } = asSwitchyardError(error);
      return json(code === 'UNAUTHENTICATED' ? 401 : 403, { error: message });
    }
    return route();
  }

  const serve = (request: IncomingMessage, response: ServerResponse) => {
    if (pages !== undefined && consolePattern.test(request.url ?? '')) {
      void pages.handle(request, response);
      return;
    }
    answer(request)
      .catch((error: Error) => json(500, { error: error.message }))
      .then((result) => send(response, result));
  };
  const server = tls === null ? createServer(serve) : createTlsServer(tls, serve, log);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(bindError('metricsPort', host, port, error)));
    server.listen(port, host, resolve);
  });
  const bound = (server.address() as AddressInfo).port;
  return {
    url: `${tls === null ? 'http' : 'https'}://${isIPv6(host) ? `[${host}]` : host}:${bound}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** What the probes answer. */
function probeGauges({ registry, health, ready, tls }: HttpOptions): void {
  gauge(registry, 'healthy', "1, or 0 while the process's own work stands still.", [], (metric) =>
    metric.set(health().healthy ? 1 : 0),
  );
  const notAfterSeconds = () => tls?.notAfterSeconds ?? null;
  if (notAfterSeconds() !== null) {
    const help = 'When the certificate of this process ends, in seconds since 1970.';
    gauge(registry, 'certificate_not_after_timestamp_seconds', help, [], (metric) =>
      metric.set(notAfterSeconds()!),
    );
  }
  gauge(registry, 'ready', '1 if the process takes work.', [], (metric) => metric.set(ready().ready ? 1 : 0));
}

function createTlsServer(tls: Tls, serve: RequestListener, log: Logger): HttpsServer {
  const server = createSecureServer(tls.serverOptions(), serve);
  guardHandshakes(server, log);
  tls.onServerContext((options) => server.setSecureContext(options));
  return server;
}

function health(options: HttpOptions): Answer {
  const now = options.health();
  return json(now.healthy ? 200 : 503, now);
}

function readiness({ ready }: HttpOptions): Answer {
  const now = ready();
  return json(now.ready ? 200 : 503, now);
}

async function metrics(registry: Registry): Promise<Answer> {
  return { status: 200, type: registry.contentType, body: await registry.metrics() };
}

function send(response: ServerResponse, { status, type, body }: Answer): void {
  const challenge = status === 401 ? { 'www-authenticate': 'Bearer' } : {};
  response.writeHead(status, {
    'content-type': type,
    'content-length': Buffer.byteLength(body),
    ...challenge,
  });
  response.end(body);
}
