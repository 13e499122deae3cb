import type { Slab } from './slab.js';

/**
 * A message that arrived: `rowBytes` of rows at the start of the slab, which the receiver owns, and its metadata; when its
 * header was here, and when all of it, on the clock of process.hrtime. An array, which the addon makes for less than an object.
 */
export type UcxMessage = [
  slab: Slab,
  rowBytes: number,
  metadata: Buffer,
  announcedMicroseconds: number,
  arrivedMicroseconds: number,
];

/** What came of a channel since it was last asked; one of the two may be empty. */
export interface UcxArrivals {
  messages: UcxMessage[];
  /** When messages sent have left, one time for each of which `send` did not tell, in their order, if the channel reports that; by the same clock. */
  sentMicroseconds: number[];
}

/**
 * One end of a two-way stream of messages between two processes. The other end knows its number and key from the control
 * plane; messages with another key never arrive.
 */
export interface UcxChannel {
  /** The number that the peer sends to. */
  readonly id: number;
  /** Makes the channel send to channel `peerId` of the process with that address. Rejects with LINK_LOST, and with CONFIG_INVALID where UCX could never carry it. */
  connect(peerAddress: Uint8Array, peerId: number): Promise<void>;
  /**
   * Sends the first `rowBytes` of the slab, and metadata, which is put behind them: the slab must have capacity for it,
   * otherwise INVALID_ARGUMENT. The message holds the memory until it has left: the slab may be released at once, and may not be
   * written to. What is wrong later `receive` tells; a message to a peer that is gone or has closed is lost without a word. True, on a
   * channel that reports: it has left already, and `receive` does not tell of it.
   */
  send(slab: Slab, rowBytes: number, metadata: Uint8Array): boolean;
  /**
   * As `send`, of rows of `rowBytes` that lie apart in the slab, and metadata. A peer that has mapped this process's slabs ("mapped"
   * among the lanes) gathers them itself; for others they are copied here on the thread of UCX, which is for short messages.
   */
  sendRows(slab: Slab, rowBytes: number, indices: Uint32Array, metadata: Uint8Array): boolean;
  /**
   * Resolves with all that has come, at least one thing. Rejects with the reason when the channel has failed
   * and everything that came before was taken, with CANCELLED after close(). One call at a time. It keeps no process alive.
   */
  receive(): Promise<UcxArrivals>;
  /** What UCX says of the channel's lanes, for example "mapped sysv posix". */
  transports(): Promise<string>;
  /**
   * Forgets the channel once what was sent has left, but after `flushMs` milliseconds (default: 5 s) at the latest: a peer that
   * stands still takes nothing. Resolves when no message of the channel uses memory any more. Idempotent.
   */
  close(flushMs?: number): Promise<void>;
  /**
   * As `close(0)`, of a channel that was lost: later ones get a way to the peer of their own, as the one that all channels share
   * may lead nowhere any more, after a cut of the network for example.
   */
  abandon(): Promise<void>;
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
  /** Bytes that the system put into a slab from a stream: long messages of peers that only TCP reaches. */
  bytesStreamed: number;
  /** Messages for no channel, with a wrong key, or larger than allowed. */
  messagesRefused: number;
  /** UCX workers through which nothing came any more, because a peer died as it wrote; all channels of their kind of peers began anew. */
  workersReplaced: number;
  /** How long the event loop has looked for messages, where it could have slept; to Node it was busy. */
  lookedNanoseconds: number;
}

export interface UcxChannelOptions {
  /** 16 secret bytes. */
  key: Uint8Array;
  messageBytesMax: number;
  /** What may have arrived and not been received; beyond it the channel fails. */
  inboxBytesMax: number;
  /** Whether `receive` tells when messages sent have left. Default: no. */
  reportSends?: boolean;
  /**
   * 32 bytes that the peer has too: messages that leave this machine travel on a TCP connection that this encrypts (TLS 1.3), or
   * not at all. Throws CONFIG_INVALID where the addon was built without OpenSSL. Default: they travel as they are.
   */
  secret?: Uint8Array;
}

/**
 * Whom UCX can reach. `machine`: processes of this machine, by shared memory, which the system keeps to one user; no port is
 * opened. `network`: other machines too; UCX opens ports on every network device. `encrypted`: the same by TCP alone, for channels with
 * a secret. The environment's UCX_TLS and UCX_NET_DEVICES come before it. `-apart`: without shared memory, whatever UCX_TLS says, for
 * peers in another network namespace, which UCX does not wake there.
 */
export type UcxReach = 'machine' | 'network' | 'encrypted' | 'network-apart' | 'encrypted-apart';

/** Whom channels lead to. A peer that dies as it writes can cost a process the channels to all peers of its kind, and to no others. */
export type UcxPeers = 'nodes' | 'clients';

/** The process's UCX for a reach, shared by all threads. It starts with the first use and ends with the environment. */
export interface UcxFabric {
  /** It changes when a worker of UCX is replaced, which ends the channels that were opened before. */
  address(): Uint8Array;
  openChannel(options: UcxChannelOptions): UcxChannel;
}

/** Loaded when a fabric is first used, which throws LINK_LOST where it cannot be. */
export interface Ucx {
  /** `peers`: default nodes. */
  fabric(reach: UcxReach, peers?: UcxPeers): UcxFabric;
  /** Of all fabrics that this environment uses. */
  stats(): UcxStats;
}

/** What this machine has of UCX, as a build with UCX finds it. */
export interface UcxDescription {
  /** Null if UCX cannot be loaded. */
  version: string | null;
  /** Whether it can encrypt what leaves this machine. */
  encrypts: boolean;
  /** Why it cannot be loaded; null if it can. */
  problem: string | null;
}
