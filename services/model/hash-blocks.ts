import { createHash } from 'node:crypto';
import { fstatSync, readSync } from 'node:fs';

/** Part of what a digest is: another size gives other digests. */
export const blockBytes = 4 * 1024 * 1024;
export const digestBytes = 32;

/** A file that any number of threads hash together, block by block. */
export interface HashJob {
  /** Of this process. */
  descriptor: number;
  byteLength: number;
  /** [1] The next block to be hashed. */
  next: Int32Array<SharedArrayBuffer>;
  /** [blocks, digestBytes] SHA-256 of each block. */
  digests: Uint8Array<SharedArrayBuffer>;
}

/** Hashes blocks until none is left. Throws if the file cannot be read or is shorter than it was. */
export function hashBlocks({ descriptor, byteLength, next, digests }: HashJob): void {
  const buffer = new Uint8Array(Math.min(blockBytes, byteLength));
  const blocks = digests.byteLength / digestBytes;
  for (let block = Atomics.add(next, 0, 1); block < blocks; block = Atomics.add(next, 0, 1)) {
    const begin = block * blockBytes;
    const length = Math.min(blockBytes, byteLength - begin);
    for (let read = 0; read < length; ) {
      const count = readSync(descriptor, buffer, read, length - read, begin + read);
      if (count === 0) {
        // A block may lie wholly behind the end.
        const { size } = fstatSync(descriptor);
        throw new Error(`it ends at byte ${size}, and had ${byteLength} bytes`);
      }
      read += count;
    }
    const digest = createHash('sha256').update(buffer.subarray(0, length)).digest();
    digests.set(digest, block * digestBytes);
  }
}
