import type { Slab } from './index.js';

/** A message that arrived: `rowBytes` of rows at the start of the slab, which the receiver owns, and its metadata. */
export interface UcxMessage {
  slab: Slab;
  rowBytes: number;
  metadata: Uint8Array;
  /** When its header was here, and when all of it, on the clock of process.hrtime. */
  announcedMicroseconds: number;
  arrivedMicroseconds: number;
}

/**
 * One end of a two-way stream of messages between two processes. The other end knows its number and key from the control
 * plane; messages with another key never arrive.
 */
export interface UcxChannel {
  /** The number that the peer sends to. */
  readonly id: number;
  /** Makes the channel send to channel `peerId` of the process with that address. Rejects with LINK_LOST. */
  connect(peerAddress: Uint8Array, peerId: number): Promise<void>;
  /**
   * Sends the first `rowBytes` of the slab, and metadata, which is put behind them: the slab must have capacity for it,
   * otherwise INVALID_ARGUMENT. Resolves when the slab may be used again; rejects with LINK_LOST if the peer is gone.
   */
  send(slab: Slab, rowBytes: number, metadata: Uint8Array): Promise<void>;
  /**
   * Sends rows of `rowBytes` that lie apart in the slab, and metadata. A peer that has mapped this process's slabs ("mapped"
   * among the lanes) gathers them itself; for others they are copied here on the thread of UCX, which is for short messages.
   */
  sendRows(slab: Slab, rowBytes: number, indices: Uint32Array, metadata: Uint8Array): Promise<void>;
  /**
   * Resolves with all messages that have arrived, at least one. Rejects with the reason when the channel has failed
   * and everything that arrived before was taken, with CANCELLED after close(). One call at a time.
   */
  receive(): Promise<UcxMessage[]>;
  /** What UCX says of the channel's lanes, for example "mapped sysv posix". */
  transports(): Promise<string>;
  /** Flushes what was sent and forgets the channel. Idempotent. */
  close(): void;
}

export interface UcxStats {
  messagesSent: number;
  messagesReceived: number;
  bytesSent: number;
  bytesReceived: number;
  /** Bytes that were copied from a transport's buffer to a slab, because the message did not come by zero-copy. */
  bytesCopied: number;
  /** Bytes that came by one copy from the peer's memory on this machine. */
  bytesTaken: number;
  /** Messages for no channel, with a wrong key, or larger than allowed. */
  messagesRefused: number;
}

/** The process's UCX worker. It starts with the first use and ends with the environment. */
export interface Ucx {
  address(): Uint8Array;
  /** `key`: 16 secret bytes. `inboxBytesMax`: what may have arrived and not been received; beyond it the channel fails. */
  openChannel(options: { key: Uint8Array; messageBytesMax: number; inboxBytesMax: number }): UcxChannel;
  /** Zeros while UCX has not been used. */
  stats(): UcxStats;
}
