import { constants, type ServerHttp2Stream } from 'node:http2';
import type { Metadata } from '@grpc/grpc-js';
import type { EndSignal } from './lifecycle.js';

/** Room for messages on their way in, in bytes, of which each connection with calls under way has a share. */
export interface MessageRoom {
  open(): MessageShare;
}

export interface MessageShare {
  reserve(bytes: number, signal: EndSignal): Promise<{ release(): void }>;
  close(): void;
}

/** Where grpc-js assembles the messages of a call. */
export interface CallDecoder {
  maxReadMessageLength: number;
  /** One byte, the first of the last message; 0 before it. */
  readonly readCompressFlag: Buffer;
  /** Of the message that is arriving. */
  readonly readMessageSize: number;
  readonly readMessageRemaining: number;
  write(data: Buffer): Buffer[];
}

const gates = new WeakMap<Metadata, MessageGate>();

/** The gate of a call whose service has room for messages. */
export function gateOf({ metadata }: { metadata: Metadata }): MessageGate | null {
  return gates.get(metadata) ?? null;
}

type Room = { release(): void };

/** The shares of connections, by where they are shared, with the calls that use them. */
const shares = new WeakMap<MessageRoom, Map<unknown, { share: MessageShare; calls: number }>>();

/** The share of a call's connection, and what the call must do at its end. */
function joinShare(room: MessageRoom, connection: unknown): { share: MessageShare; leave: () => void } {
  const all = shares.get(room) ?? new Map<unknown, { share: MessageShare; calls: number }>();
  shares.set(room, all);
  const joined = all.get(connection) ?? { share: room.open(), calls: 0 };
  all.set(connection, joined);
  joined.calls += 1;
  const leave = () => {
    joined.calls -= 1;
    if (joined.calls > 0) return;
    all.delete(connection);
    joined.share.close();
  };
  return { share: joined.share, leave };
}

/**
 * Lets a call's messages in as there is room. grpc-js takes a message into memory as it comes; here, what follows the first
 * bytes of one is read when its announced length has its room, which it has until it is given back. A message that comes whole
 * in its first bytes, those of one read of the connection, needs none.
 */
export class MessageGate {
  /** Called when a message that waited may come in. */
  onAdmitted: () => void = () => {};
  private readonly share: MessageShare;
  private readonly leave: () => void;
  private readonly over = new AbortController();
  /** Of messages that are here and nobody has claimed, in their order; null: it has none. */
  private readonly here: (Room | null)[] = [];
  /** Of messages that somebody has and has not taken. */
  private readonly claimed = new Set<Room>();
  /** Of the message that is arriving. */
  private arriving: Room | null = null;
  /** What the arriving message waits for. */
  private awaited: Promise<void> | null = null;
  private arrivingSinceMs: number | null = null;

  /** Of the call with this metadata. */
  constructor(
    metadata: Metadata,
    private readonly stream: ServerHttp2Stream,
    decoder: CallDecoder,
    room: MessageRoom,
  ) {
    gates.set(metadata, this);
    const { share, leave } = joinShare(room, stream.session);
    this.share = share;
    this.leave = leave;
    const write = decoder.write.bind(decoder);
    decoder.write = (data) => {
      const messages = write(data);
      for (const _ of messages) this.arrived();
      if (decoder.readMessageRemaining > 0) this.arrivingSinceMs ??= performance.now();
      if (decoder.readMessageRemaining > 0 && this.arriving === null) this.admit(decoder.readMessageSize);
      return messages;
    };
  }

  /** Whether a message is held back. */
  get waiting(): boolean {
    return this.awaited !== null;
  }

  /** Since when a message comes in, or may, without being whole, as performance.now(); null: none does. */
  get incompleteSinceMs(): number | null {
    return this.waiting ? null : this.arrivingSinceMs;
  }

  /** Of the oldest message that is here and was not asked for: what gives its room back. */
  claim(): () => void {
    const room = this.here.shift() ?? null;
    if (room === null) return () => {};
    this.claimed.add(room);
    return () => {
      this.claimed.delete(room);
      room.release();
    };
  }

  /** Ends the stream with what has not left. Its client learns that it was too slow. */
  cut(): void {
    if (!this.stream.destroyed) this.stream.close(constants.NGHTTP2_ENHANCE_YOUR_CALM);
  }

  /** The call is over. */
  close(): void {
    this.over.abort();
    for (const room of [this.arriving, ...this.here.splice(0), ...this.claimed]) room?.release();
    this.claimed.clear();
    this.arriving = null;
    this.leave();
  }

  private arrived(): void {
    this.here.push(this.arriving);
    this.arriving = null;
    this.awaited = null;
    this.arrivingSinceMs = null;
  }

  private admit(bytes: number): void {
    this.stream.pause();
    if (this.awaited !== null) return;
    const { signal } = this.over;
    const awaited = this.share.reserve(bytes, signal).then(
      (room) => {
        // What was already on its way may have been the rest of it.
        if (signal.aborted || this.awaited !== awaited) return room.release();
        this.awaited = null;
        this.arriving = room;
        this.arrivingSinceMs = performance.now();
        this.stream.resume();
        this.onAdmitted();
      },
      () => {},
    );
    this.awaited = awaited;
  }
}
