/** BF16 rows whose values vary from token to token and element to element, equal on every run. */
export function testRows(tokens: number, hidden: number, seed = 1): Uint8Array {
  const rows = new Uint16Array(tokens * hidden);
  const float = new Float32Array(1);
  const bits = new Uint32Array(float.buffer);
  let state = seed;
  for (let index = 0; index < rows.length; index++) {
    // Steps of a 32-bit linear congruential generator (Numerical Recipes).
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    float[0] = state / 2 ** 31 - 1;
    rows[index] = bits[0]! >>> 16;
  }
  return new Uint8Array(rows.buffer);
}
