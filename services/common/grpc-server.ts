import type { Http2Server, ServerOptions } from 'node:http2';
import { isIPv6, type Socket } from 'node:net';
import {
  Server,
  ServerCredentials,
  ServerInterceptingCall,
  type ServerInterceptor,
  type ServiceDefinition,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { protoPath as healthProtoPath } from 'grpc-health-check';
import { type Access, assertBindAllowed, needOf } from './access.js';
import { certificateOf } from './certificate.js';
import { SwitchyardError } from './errors.js';
import { channelOptions, type MessageLimit, windowBytes } from './grpc-channel.js';
import { boundConnections, connectionsMax, guardCalls, skipGoneStreams, socketOf } from './grpc-guard.js';
import { Health } from './health.js';
import type { Logger } from './log.js';
import type { MessageRoom } from './message-gate.js';
import { prepareProcess } from './process.js';
import { packageDefinition } from './protocol.js';
import { addReflection } from './reflection.js';
import { toServiceError } from './status.js';
import { guardHandshakes, type Tls, TlsServerCredentials } from './tls.js';

export interface GrpcService {
  definition: ServiceDefinition;
  implementation: UntypedServiceImplementation;
  /** Where messages of its streams get their room. Default: they are bounded by their size alone. */
  messageRoom?: MessageRoom;
}

export interface GrpcServerOptions {
  host: string;
  /** 0: a free one. */
  port: number;
  /** Who may call. */
  access: Access;
  insecure: boolean;
  /** Default: connections are not encrypted. */
  tls?: Tls | null;
  messageLimit: MessageLimit;
  /** Calls at once that the services count and bound themselves. Default: none. */
  batchesMax?: number;
  /** What a stream may have sent that nobody reads. Default: as a connection. */
  streamWindowBytes?: number;
  services: GrpcService[];
  /** What grpc.health.v1 answers for beside them. */
  healthNames?: readonly string[];
  log: Logger;
}

export interface GrpcServer {
  /** host:port as bound, for clients on this machine and in registrations. */
  readonly address: string;
  readonly port: number;
  /** What grpc.health.v1 answers for a service's full name; '' is the whole server. Not serving until told so. */
  setServing(service: string, serving: boolean): void;
  /** Whether the work of the process gets on: while it does not, nothing here serves. */
  setLive(live: boolean): void;
  /** Refuses new calls, waits up to `graceMs` for those that run, then cuts them, whatever their peers do. Idempotent. */
  close(graceMs: number): Promise<void>;
}

const concurrentStreamsMax = 1024;
/** Calls at once that a server takes beside those that its services count themselves. */
const callsBeside = 4096;

/** grpc-js has an option for the windows of clients only; those of a server are set where it keeps node:http2's. */
interface ServerInternals {
  commonServerOptions: ServerOptions;
  http2Servers: Map<Http2Server, unknown>;
}

const reflectionPath = '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo';

/**
 * Starts a gRPC server with the services given, grpc.health.v1 and reflection.
 * Throws CONFIG_INVALID for a host that needs a token and for an address that cannot be bound.
 */
export async function startGrpcServer(options: GrpcServerOptions): Promise<GrpcServer> {
  const { host, port, access, tls = null, messageLimit, services, healthNames = [], log } = options;
  const paths = services.flatMap(({ definition }) => Object.values(definition).map(({ path }) => path));
  assertBindAllowed(host, access, options.insecure, [...paths, reflectionPath]);
  prepareProcess();
  const server = new Server({
    ...channelOptions(messageLimit.bytesMax),
    interceptors: [
      guardCalls(callsBeside + (options.batchesMax ?? 0), roomsOf(services), messageLimit),
      accessInterceptor(access, log),
    ],
  });
  const internals = server as unknown as ServerInternals;
  internals.commonServerOptions.settings = {
    maxConcurrentStreams: concurrentStreamsMax,
    initialWindowSize: options.streamWindowBytes ?? windowBytes,
  };
  for (const { definition, implementation } of services) server.addService(definition, implementation);
  const names = services.map(({ definition }) => serviceName(definition));
  const health = new Health([...names, ...healthNames]);
  health.addTo(server);
  // The protocols describe more services than this server has; reflection lists those that it has.
  const definitions = () => ({ ...packageDefinition, ...loadSync(healthProtoPath) });
  addReflection(server, definitions, [...names, 'grpc.health.v1.Health']);

  const bracketed = isIPv6(host) ? `[${host}]` : host;
  const credentials = tls === null ? ServerCredentials.createInsecure() : new TlsServerCredentials(tls);
  const boundPort = await bind(server, credentials, host, bracketed, port);
  const sockets = new Set<Socket>();
  for (const http2Server of internals.http2Servers.keys()) {
    http2Server.on('connection', (socket) => {
      sockets.add(socket);
      socket.once('close', () => sockets.delete(socket));
    });
    http2Server.on('session', (session) => session.setLocalWindowSize(windowBytes));
    skipGoneStreams(http2Server);
    boundConnections(http2Server, connectionsMax);
    if (tls !== null) guardHandshakes(http2Server, log);
  }
  let closing: Promise<void> | null = null;
  return {
    address: `${bracketed}:${boundPort}`,
    port: boundPort,
    setServing: (name, serving) => health.setServing(name, serving),
    setLive: (live) => health.setLive(live),
    close: (graceMs) => {
      health.endWatches();
      closing ??= shutDown(server, sockets, graceMs);
      return closing;
    },
  };
}

function serviceName(definition: ServiceDefinition): string {
  const path = Object.values(definition)[0]?.path ?? '';
  return path.split('/')[1] ?? '';
}

/** Where the messages of a method's streams get their room. */
function roomsOf(services: GrpcService[]): (path: string) => MessageRoom | null {
  const rooms = services.flatMap(({ definition, messageRoom = null }) =>
    Object.values(definition).map(
      ({ path, requestStream }) => [path, requestStream ? messageRoom : null] as const,
    ),
  );
  const byPath = new Map(rooms);
  return (path) => byPath.get(path) ?? null;
}

function accessInterceptor(access: Access, log: Logger): ServerInterceptor {
  return ({ path }, call) => {
    // Links show their key to the service, which knows it.
    if (access.isOpen(path) || needOf(path) === 'link') return new ServerInterceptingCall(call);
    return new ServerInterceptingCall(call, {
      start(next) {
        next({
          onReceiveMetadata(metadata, deliver) {
            try {
              access.check(path, metadata.get('authorization')[0], certificateOf(socketOf(call)));
            } catch (error) {
              const { code, details, metadata: trailers } = toServiceError(error);
              log.warn({ event: 'call-refused', method: path, peer: call.getPeer(), reason: details });
              call.sendStatus({
                code: code ?? status.UNAUTHENTICATED,
                details: details ?? '',
                metadata: trailers ?? null,
              });
              return;
            }
            metadata.remove('authorization');
            deliver(metadata);
          },
        });
      },
    });
  };
}

function bind(
  server: Server,
  credentials: ServerCredentials,
  host: string,
  bracketed: string,
  port: number,
): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(`${bracketed}:${port}`, credentials, (error, boundPort) => {
      if (!error) resolve(boundPort);
      else reject(bindError('port', host, port, error));
    });
  });
}

/** A port (`portKey`) that is taken, or a host that this machine does not have, in the words of the configuration. */
export function bindError(
  portKey: 'port' | 'metricsPort',
  host: string,
  port: number,
  cause: Error,
): SwitchyardError {
  const inUse = cause.message.includes('EADDRINUSE');
  const [key, value, allowed] = inUse
    ? ([portKey, port, 'a port that no process listens on, or 0 for a free one'] as const)
    : (['host', host, 'an address of this machine, and a port that this user may open'] as const);
  const reason = inUse ? `in use on ${host}` : cause.message;
  return new SwitchyardError(
    'CONFIG_INVALID',
    `${key} is ${JSON.stringify(value)}: ${reason}; allowed: ${allowed}`,
    {
      key,
      value,
      allowed,
    },
    { cause },
  );
}

/** A connection whose peer does not read is never flushed, and so never over by itself: its socket is closed. */
function shutDown(server: Server, sockets: ReadonlySet<Socket>, graceMs: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      server.forceShutdown();
      for (const socket of sockets) socket.destroy();
      resolve();
    }, graceMs);
    server.tryShutdown(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
