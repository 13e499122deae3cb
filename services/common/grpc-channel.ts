import type { Socket } from 'node:net';
import {
  CallCredentials,
  ChannelCredentials,
  type ChannelOptions,
  type Client,
  type ClientOptions,
  type experimental,
  InterceptingCall,
  type Interceptor,
} from '@grpc/grpc-js';
import { systemClock } from '../runtime/system.js';
import { hostOf } from './address.js';
import type { Tls } from './tls.js';

/** Metadata beside the rows of a message, on every transport: indices, weights, routing. Senders cut what needs more. */
export const metadataBytesMax = 1024 * 1024;

/**
 * HTTP/2 flow-control window of a stream and of a connection. The default of 64 KiB makes the sender wait for the
 * receiver at every 64 KiB: half the throughput between two processes, and 3 MB/s where a round trip takes 20 ms.
 */
export const windowBytes = 4 * 1024 * 1024;

/** What one message may carry: bytes of rows and routing, and whose messageBytesMax says so, as role and name. */
export interface MessageLimit {
  bytesMax: number;
  node: string;
}

/** The longest message that comes in where rows have at most `messageBytesMax`. */
export function messageLengthMax(messageBytesMax: number): number {
  return 2 * messageBytesMax + metadataBytesMax;
}

/**
 * Options of both ends. Twice `messageBytesMax` may come, so that the services refuse what is above it by name and value. What
 * is sent has the limit of the other end alone.
 */
export function channelOptions(messageBytesMax: number): ChannelOptions {
  return {
    'grpc.max_receive_message_length': messageLengthMax(messageBytesMax),
    'grpc.keepalive_time_ms': 10_000,
    'grpc.keepalive_timeout_ms': 20_000,
    'grpc.keepalive_permit_without_calls': 1,
  };
}

const clientOptions: ChannelOptions = {
  // Servers keep theirs on: without it grpc-js forgets the connections that a shutdown must cut.
  'grpc.enable_channelz': 0,
  'grpc-node.flow_control_window': windowBytes,
  // A retry would keep a copy of every message until its answer; calls are repeated where it is decided why.
  'grpc.enable_retries': 0,
  'grpc.service_config_disable_resolution': 1,
  // The traffic of a cluster never goes through a proxy that the environment happens to name.
  'grpc.enable_http_proxy': 0,
  'grpc.use_local_subchannel_pool': 1,
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 1000,
};

/**
 * Pings that end a connection whose other end is silent for so long: a cable that was cut breaks nothing by itself. TCP waits
 * about as long again as a cut has lasted before it sends anew, so an answer has the whole lease.
 */
function keepalive(leaseMs: number): ChannelOptions {
  return {
    'grpc.keepalive_time_ms': Math.ceil(leaseMs / 2),
    'grpc.keepalive_timeout_ms': leaseMs,
  };
}

function bearerInterceptor(token: string): Interceptor {
  return (options, nextCall) =>
    new InterceptingCall(nextCall(options), {
      start(metadata, listener, next) {
        metadata.set('authorization', `Bearer ${token}`);
        next(metadata, listener);
      },
    });
}

/**
 * grpc-js begins a call some promises after it was made: one that is cancelled before goes out all the same, is never cancelled, and stays open
 * at the server. So calls are cancelled in the next turn of the event loop; until then messages may come.
 */
const cancelsWhatHasBegun: Interceptor = (options, nextCall) =>
  new InterceptingCall(nextCall(options), { cancel: (next) => void systemClock.soon(next) });

/** What a caller shows of itself, and whom it trusts. */
export interface Credential {
  token: string | null;
  /** Default: connections are not encrypted. */
  tls?: Tls | null;
}

/** grpc-js keeps the sockets of a channel to itself; only its credentials see them. */
class ConnectionCredentials extends ChannelCredentials {
  constructor(
    private readonly host: string,
    private readonly node: string | undefined,
    private readonly tls: Tls | null,
    private readonly onSocket: (socket: Socket) => void,
  ) {
    super();
  }

  _isSecure(): boolean {
    return this.tls !== null;
  }

  _equals(other: ChannelCredentials): boolean {
    return this === other;
  }

  _createSecureConnector(
    _target: unknown,
    _options: unknown,
    calls = CallCredentials.createEmpty(),
  ): experimental.SecureConnector {
    const { host, node, tls, onSocket } = this;
    return {
      async connect(socket) {
        onSocket(socket);
        return tls === null
          ? { socket, secure: false }
          : { socket: await tls.secure(socket, host, node), secure: true };
      },
      waitForReady: async () => {},
      getCallCredentials: () => calls,
      destroy() {},
    };
  }
}

export interface ConnectionOptions extends Credential {
  messageBytesMax: number;
  leaseMs?: number;
  /** The node that the server is, if it is known: a certificate for it counts whatever its host. */
  node?: string | undefined;
  /** Gets the socket of every connection that the client makes. */
  onSocket?: (socket: Socket) => void;
}

/**
 * A client of one of `clients` on a connection of its own to `address` (host:port). Every call carries
 * the token, and with `tls` nothing is said in the clear. With `leaseMs` the connection breaks when the server is silent for so long. Connecting happens on the
 * first call; `client.close()` ends the connection.
 */
export function connect<C extends Client>(
  ClientType: new (address: string, credentials: ChannelCredentials, options: ClientOptions) => C,
  address: string,
  { token, tls = null, messageBytesMax, leaseMs, node, onSocket = () => {} }: ConnectionOptions,
): C {
  return new ClientType(address, new ConnectionCredentials(hostOf(address), node, tls, onSocket), {
    ...channelOptions(messageBytesMax),
    ...clientOptions,
    ...(leaseMs === undefined ? {} : keepalive(leaseMs)),
    interceptors: [cancelsWhatHasBegun, ...(token === null ? [] : [bearerInterceptor(token)])],
  });
}
