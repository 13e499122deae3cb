/** Little-endian arrays as bytes of a message, and back. Every supported machine is little-endian, as the rows are. */
const bytesOf = (array: Uint32Array | Float32Array) =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength);

export const packUint32 = (array: Uint32Array): Buffer => bytesOf(array);
export const packFloat32 = (array: Float32Array): Buffer => bytesOf(array);

/**
 * Bytes of a received message lie at any address, and a view of them would keep the whole message, rows
 * included, in memory: so they are copied. The length must be a multiple of four.
 */
export const unpackUint32 = (bytes: Uint8Array): Uint32Array => new Uint32Array(new Uint8Array(bytes).buffer);
export const unpackFloat32 = (bytes: Uint8Array): Float32Array =>
  new Float32Array(new Uint8Array(bytes).buffer);

/** Narrows int64, at an address that is a multiple of four, to as many uint32. Returns the first that is not 0 to below `limit`. */
export function narrowInt64(
  { buffer, byteOffset }: Uint8Array,
  limit: number,
  target: Uint32Array,
): { index: number; value: bigint } | null {
  const halves = new Uint32Array(buffer, byteOffset, target.length * 2);
  for (let index = 0; index < target.length; index += 1) {
    const low = halves[2 * index]!;
    if (halves[2 * index + 1] !== 0 || low >= limit) {
      const value = new DataView(buffer, byteOffset).getBigInt64(index * 8, true);
      return { index, value };
    }
    target[index] = low;
  }
  return null;
}
