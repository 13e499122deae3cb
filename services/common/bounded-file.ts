import { closeSync, openSync, readSync } from 'node:fs';

const blockBytes = 64 * 1024;

/** The content of a file. Throws if it has more bytes than that; one without an end, as /dev/zero is, is not read further. */
export function readBounded(path: string, bytesMax: number): Buffer {
  const file = openSync(path, 'r');
  try {
    const blocks: Buffer[] = [];
    for (let bytes = 0; ; ) {
      const block = Buffer.allocUnsafe(Math.min(blockBytes, bytesMax + 1 - bytes));
      const read = readSync(file, block, 0, block.byteLength, null);
      if (read === 0) return Buffer.concat(blocks);
      bytes += read;
      if (bytes > bytesMax) throw new Error(`it has more than ${bytesMax} bytes`);
      blocks.push(block.subarray(0, read));
    }
  } finally {
    closeSync(file);
  }
}
