import { fstatSync, readSync } from 'node:fs';
import { createBlake3 } from './blake3.js';

/** Part of what a digest is: another size gives other digests. */
export const blockBytes = 4 * 1024 * 1024;
export const digestBytes = 32;
/** Bytes read at once: they are still in the core's cache when they are hashed. */
const pieceBytes = 256 * 1024;

/** A file that any number of threads hash together, block by block. */
export interface HashJob {
  /** Of this process. */
  descriptor: number;
  byteLength: number;
  /** [1] The next block to be hashed. */
  next: Int32Array<SharedArrayBuffer>;
  /** [blocks, digestBytes] BLAKE3 of each block. */
  digests: Uint8Array<SharedArrayBuffer>;
}

/** Hashes blocks until none is left. Throws if the file cannot be read or is shorter than it was. */
export function hashBlocks({ descriptor, byteLength, next, digests }: HashJob): void {
  const piece = Buffer.allocUnsafeSlow(Math.min(pieceBytes, byteLength));
  const blocks = digests.byteLength / digestBytes;
  for (let block = Atomics.add(next, 0, 1); block < blocks; block = Atomics.add(next, 0, 1)) {
    const begin = block * blockBytes;
    const end = Math.min(begin + blockBytes, byteLength);
    const hasher = createBlake3();
    for (let at = begin; at < end; ) {
      const count = readSync(descriptor, piece, 0, Math.min(piece.byteLength, end - at), at);
      if (count === 0) {
        // A block may lie wholly behind the end.
        const { size } = fstatSync(descriptor);
        throw new Error(`it ends at byte ${size}, and had ${byteLength} bytes`);
      }
      hasher.update(piece.subarray(0, count));
      at += count;
    }
    digests.set(hasher.digestBuffer(), block * digestBytes);
  }
}
