/** Page-aligned, reference-counted memory outside the V8 heap. */
export interface Slab {
  readonly byteLength: number;
  /** Bytes of memory from its start: `byteLength`, and what a message may have behind its rows. */
  readonly capacity: number;
  readonly released: boolean;
  /** Another handle on the same memory, to be released apart. */
  share(): Slab;
  /** Zero-copy view of the whole slab; it keeps the memory alive until it is garbage collected. */
  view(): Uint8Array;
  /** Gives up the handle. Idempotent. Every later use of the handle throws SLAB_RELEASED. */
  release(): void;
}
