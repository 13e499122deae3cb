/** BF16 for samples of a few rows, in verification. Rows of a batch are the addon's work. */

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** The values of little-endian BF16. */
export function decodeBf16(bytes: Uint8Array): Float64Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const values = new Float64Array(bytes.byteLength / 2);
  for (let index = 0; index < values.length; index++) {
    bits[0] = view.getUint16(index * 2, true) << 16;
    values[index] = float[0]!;
  }
  return values;
}

/** The values rounded to BF16, to nearest with ties to even, by way of float32 as the kernels do. */
export function roundToBf16(values: Float64Array): Float64Array {
  return values.map((value) => {
    float[0] = value;
    bits[0] = (bits[0]! + 0x7fff + ((bits[0]! >>> 16) & 1)) & 0xffff0000;
    return float[0]!;
  });
}
