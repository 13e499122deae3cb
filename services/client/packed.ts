/** Little-endian arrays as bytes of a message, and back. Every supported machine is little-endian, as the rows are. */
const bytesOf = (array: Uint32Array | Float32Array) =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength);

export const packUint32 = (array: Uint32Array): Buffer => bytesOf(array);
export const packFloat32 = (array: Float32Array): Buffer => bytesOf(array);

/** Bytes of a received message may lie at any address; a typed array needs a multiple of four. */
function aligned(bytes: Uint8Array): Uint8Array {
  return bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
}

export function unpackUint32(bytes: Uint8Array): Uint32Array {
  const source = aligned(bytes);
  return new Uint32Array(source.buffer, source.byteOffset, source.byteLength / 4);
}

export function unpackFloat32(bytes: Uint8Array): Float32Array {
  const source = aligned(bytes);
  return new Float32Array(source.buffer, source.byteOffset, source.byteLength / 4);
}
