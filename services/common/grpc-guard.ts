import type { Http2Server, ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import { ServerInterceptingCall, type ServerInterceptor, type StatusObject, status } from '@grpc/grpc-js';
import { controlLimits } from './control-limits.js';
import { invalidArgument, SwitchyardError } from './errors.js';
import { FairSlots } from './fair-slots.js';
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

/**
 * The interceptor next to the wire: what a call may cost before a service hears of it. Compressed messages are refused, because
 * a few bytes of them become as many as they like; requests of small methods are small, and do not take forever; a
 * connection has a share of `callsMax` calls at once. `roomOf`: where the messages of a method get their room, if it is bounded.
 */
export function guardCalls(
  callsMax: number,
  roomOf: (path: string) => MessageRoom | null,
): ServerInterceptor {
  const slots = new FairSlots(callsMax);
  return (method, call) => {
    const { incomingEncoding, stream, decoder } = call as unknown as CallInternals;
    decoder.maxReadMessageLength = Math.min(decoder.maxReadMessageLength, requestBytesMax(method));
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
            if (incomingEncoding !== 'identity') return call.sendStatus(unknownEncoding(incomingEncoding));
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

function requestBytesMax({ path, requestStream }: { path: string; requestStream: boolean }): number {
  if (!requestStream || path.startsWith('/grpc.')) return smallRequestBytes;
  return path === services.Coordinator.Join.path ? controlLimits.messageBytesMax : Number.POSITIVE_INFINITY;
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

function statusOf(error: SwitchyardError): StatusObject {
  const { code, details, metadata } = toServiceError(error);
  return { code: code!, details: details!, metadata: metadata! };
}

/** The status, and the word of what is accepted, are those of the gRPC specification. */
function unknownEncoding(encoding: string): StatusObject {
  const allowed = 'identity, as compressed messages are not taken';
  const refusal = statusOf(invalidArgument('grpc-encoding', encoding, allowed));
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
