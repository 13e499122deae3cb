import type { Http2Server, ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import {
  ServerInterceptingCall,
  type ServerInterceptingCallInterface,
  type ServerInterceptor,
  type StatusObject,
  status,
} from '@grpc/grpc-js';
import { controlLimits } from './control-limits.js';
import { invalidArgument, overLimit, SwitchyardError } from './errors.js';
import { FairSlots } from './fair-slots.js';
import { type MessageLimit, messageLengthMax } from './grpc-channel.js';
import { type CallDecoder, MessageGate, type MessageRoom } from './message-gate.js';
import { services } from './protocol.js';
import { toServiceError } from './status.js';

/** HTTP/2 connections of a server at once. */
export const connectionsMax = 4096;
/** The largest request of a method that is called with one message, and of gRPC's own services. */
const smallRequestBytes = 64 * 1024;
/** How long such a request may take to be complete. */
const smallRequestMs = 30_000;
const acceptEncoding = 'grpc-accept-encoding';

/** Where grpc-js keeps what it would do with a call's messages before anybody is asked. */
interface CallInternals {
  incomingEncoding: string;
  stream: ServerHttp2Stream;
  decoder: CallDecoder;
}

/** The connection of a call, which is within the interceptors next to the wire. */
export function socketOf(call: ServerInterceptingCallInterface): Socket | undefined {
  const { nextCall, stream } = call as unknown as {
    nextCall?: ServerInterceptingCallInterface;
  } & CallInternals;
  return nextCall === undefined ? stream.session?.socket : socketOf(nextCall);
}

/**
 * The interceptor next to the wire: what a call may cost before a service hears of it. Compressed messages are refused, because
 * a few bytes of them become as many as they like, and so are messages above the limit, by their first bytes; requests of small
 * methods are small, and do not take forever; a connection has a share of `callsMax` calls at once. `roomOf`: where the messages
 * of a method get their room, if it is bounded.
 */
export function guardCalls(
  callsMax: number,
  roomOf: (path: string) => MessageRoom | null,
  limit: MessageLimit,
): ServerInterceptor {
  const slots = new FairSlots(callsMax);
  return (method, call) => {
    const { incomingEncoding, stream, decoder } = call as unknown as CallInternals;
    checkHeads(decoder, lengthLimitOf(method, limit), (refusal) => call.sendStatus(refusal));
    let giveBack: (() => void) | null = null;
    let late: NodeJS.Timeout | undefined;
    let gate: MessageGate | null = null;
    return new ServerInterceptingCall(call, {
      start(next) {
        next({
          onReceiveMetadata(metadata, deliver) {
            const peer = call.getPeer();
            giveBack = slots.take(peer);
            if (giveBack === null) return call.sendStatus(statusOf(tooManyCalls(slots, peer)));
            if (incomingEncoding !== 'identity')
              return call.sendStatus(compressed('grpc-encoding', incomingEncoding, 'identity'));
            if (!method.requestStream) {
              late = setTimeout(() => call.sendStatus(statusOf(incomplete(method.path))), smallRequestMs);
            }
            const room = roomOf(method.path);
            if (room !== null) gate = new MessageGate(metadata, stream, decoder, room);
            deliver(metadata);
          },
          onReceiveHalfClose(deliver) {
            clearTimeout(late);
            deliver();
          },
          // However the call ends.
          onCancel() {
            clearTimeout(late);
            gate?.close();
            giveBack?.();
          },
        });
      },
      sendMetadata(metadata, next) {
        metadata.set(acceptEncoding, 'identity');
        next(metadata);
      },
    });
  };
}

interface LengthLimit {
  lengthMax: number;
  /** Of a message above it. */
  tooLarge: (length: number) => SwitchyardError;
}

function lengthLimitOf(
  { path, requestStream }: { path: string; requestStream: boolean },
  { bytesMax, node }: MessageLimit,
): LengthLimit {
  const field = `bytes of a message of ${path}`;
  const fixed = (lengthMax: number) => ({
    lengthMax,
    tooLarge: (length: number) => overLimit('TOO_LARGE', field, length, lengthMax, null),
  });
  // A placement has a few bytes for each copy.
  if (path === services.Coordinator.Join.path || path === services.Operator.Rebalance.path)
    return fixed(controlLimits.messageBytesMax);
  if (!requestStream || path.startsWith('/grpc.')) return fixed(smallRequestBytes);
  const by = { setting: 'messageBytesMax', node };
  return {
    lengthMax: messageLengthMax(bytesMax),
    tooLarge: (length) => overLimit('TOO_LARGE', field, length, bytesMax, by),
  };
}

/**
 * Looks at the first bytes of messages. By itself grpc-js would end a call whose message is too long in words that name nothing,
 * and take a compressed one into memory even where no encoding was announced.
 */
function checkHeads(
  decoder: CallDecoder,
  { lengthMax, tooLarge }: LengthLimit,
  refuse: (refusal: StatusObject) => void,
): void {
  decoder.maxReadMessageLength = lengthMax;
  const write = decoder.write.bind(decoder);
  decoder.write = (data) => {
    let messages: Buffer[];
    try {
      messages = write(data);
    } catch (error) {
      refuse(statusOf(tooLarge(decoder.readMessageSize)));
      throw error;
    }
    const heads = [decoder.readCompressFlag, ...messages];
    if (heads.every(([flag]) => flag === 0)) return messages;
    refuse(compressed('compressed flag of a message', 1, '0'));
    // The call is over: what throws here is not read on.
    throw new Error('a compressed message');
  };
}

/**
 * Bounds the connections of a server. One that has no call makes way for a new one, the oldest first: connections that
 * never say anything, or that nobody uses, shut nobody out.
 */
export function boundConnections(server: Http2Server, max: number): void {
  const open = new Set<ServerHttp2Session>();
  const idle = new Set<ServerHttp2Session>();
  server.on('session', (session) => {
    open.add(session);
    idle.add(session);
    let streams = 0;
    session.on('stream', (stream) => {
      if (isGone(stream)) return;
      streams += 1;
      idle.delete(session);
      stream.once('close', () => {
        streams -= 1;
        if (streams === 0 && open.has(session)) idle.add(session);
      });
    });
    session.once('close', () => {
      open.delete(session);
      idle.delete(session);
    });
    if (open.size <= max) return;
    const [oldest] = idle;
    open.delete(oldest!);
    idle.delete(oldest!);
    oldest!.destroy();
  });
}

/**
 * grpc-js answers at once what it refuses, and throws if the stream is gone by then, as one is whose end came with its beginning: such streams
 * are kept from it.
 */
export function skipGoneStreams(server: Http2Server): void {
  for (const listener of server.listeners('stream')) {
    server.off('stream', listener as () => void);
    server.on('stream', (stream, ...said) => {
      if (isGone(stream)) stream.on('error', () => {});
      else listener.call(server, stream, ...said);
    });
  }
}

const isGone = ({ destroyed, closed }: ServerHttp2Stream) => destroyed || closed;

function statusOf(error: SwitchyardError): StatusObject {
  const { code, details, metadata } = toServiceError(error);
  return { code: code!, details: details!, metadata: metadata! };
}

/** The status, and the word of what is accepted, are those of the gRPC specification. */
function compressed(field: string, value: unknown, allowed: string): StatusObject {
  const refusal = statusOf(invalidArgument(field, value, `${allowed}, as compressed messages are not taken`));
  refusal.metadata.set(acceptEncoding, 'identity');
  return { ...refusal, code: status.UNIMPLEMENTED };
}

function tooManyCalls(slots: FairSlots, peer: string): SwitchyardError {
  const calls = slots.heldBy(peer);
  const text = `the connection has ${calls} calls under way; allowed: fewer than are free of ${slots.max}, now ${slots.free}`;
  return new SwitchyardError('RESOURCE_EXHAUSTED', text, { calls, free: slots.free, callsMax: slots.max });
}

function incomplete(path: string): SwitchyardError {
  const text = `the request of ${path} was not complete within ${smallRequestMs} ms`;
  return new SwitchyardError('DEADLINE_EXCEEDED', text, { method: path, allowed: smallRequestMs });
}
