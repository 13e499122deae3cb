import type { Slab, SlabRange } from '../../native/index.js';
import type { Interval } from '../common/trace.js';
import type { RowOperations } from '../runtime/rows.js';

/** The rows of a message: the first `bytes` of a slab, or, to a port that gathers, the rows of `rowBytes` that `selected` names. */
export interface OutgoingRows {
  slab: Slab;
  bytes: number;
  gather?: { rowBytes: number; selected: Uint32Array };
}

export interface Outgoing<Message> {
  /** Builds the message when its turn has come; with its rows in it, where the transport puts them there. */
  make: (rows?: Uint8Array) => Message;
  rows: OutgoingRows | null;
  /** Called once: the slab may be released, because the port holds what it needs or the message will never be sent. */
  done: () => void;
  /** Called with the time when the message has left, in microseconds, by a port that tells. */
  sent?: ((microseconds: number) => void) | undefined;
}

/** The sending half of a stream of messages that may carry rows. Messages arrive in the order of sending. */
export interface MessagePort<Message> {
  /** Whether rows may lie apart: whoever receives them copies them together. */
  readonly gathers: boolean;
  send(outgoing: Outgoing<Message>): void;
  /** Takes a message back; false if it is on its way already. */
  withdraw(outgoing: Outgoing<Message>): boolean;
  /** Sends nothing more. Idempotent. */
  destroy(): void | Promise<void>;
}

/** By what rows in a message are copied and given up. */
type MessageMemory = Pick<RowOperations, 'allocateSlab' | 'copyIn' | 'endView'>;

/**
 * Rows as they arrived: bytes in a gRPC message that will be collected, or a slab that the receiver owns. `transfer`: from
 * the first that was known of them to the last byte, where the transport tells.
 */
export type ArrivedRows = { readonly byteLength: number; readonly transfer?: Interval } & (
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array; readonly memory: MessageMemory }
  | { readonly kind: 'slab'; readonly slab: Slab }
);

export function rowsOfMessage(bytes: Uint8Array, memory: MessageMemory): ArrivedRows {
  return { kind: 'bytes', bytes, byteLength: bytes.byteLength, memory };
}

/** The rows in a slab that the caller owns; bytes of a message are copied once, off the JS thread. */
export async function intoSlab(rows: ArrivedRows): Promise<Slab> {
  return rows.kind === 'slab' ? rows.slab : slabOf(rows.bytes, rows.memory);
}

/** A copy in a slab that the caller owns, with `tailBytes` of capacity behind it; made off the JS thread. */
export async function slabOf(
  rows: Uint8Array | SlabRange,
  memory: Pick<RowOperations, 'allocateSlab' | 'copyIn'>,
  tailBytes = 0,
): Promise<Slab> {
  const slab = memory.allocateSlab(rows.byteLength, tailBytes);
  try {
    await memory.copyIn(rows, slab, 0);
    return slab;
  } catch (error) {
    slab.release();
    throw error;
  }
}

/**
 * Gives up rows that nobody wants any more, and with those in a gRPC message the whole message: its memory need not wait for
 * the garbage collector. Short messages share theirs.
 */
export function dropRows(rows: ArrivedRows): void {
  if (rows.kind === 'slab') rows.slab.release();
  else if (rows.byteLength > Buffer.poolSize) rows.memory.endView(rows.bytes);
}
