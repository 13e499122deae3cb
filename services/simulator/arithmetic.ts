/**
 * What a simulated model computes. A row is an identity of 64 bits instead of a vector, and sums are of integers, so that a
 * result tells exactly which rows, experts, weights and layers it was made of, whatever the order of the additions.
 */
export interface Row {
  a: number;
  b: number;
}

/** Elements of a row in BF16: 8 bytes. */
export const hidden = 4;
export const rowWords = 2;
export const rowBytes = 8;

function mix(a: number, b: number): number {
  let x = Math.imul(a ^ (a >>> 16), 0x7feb352d) ^ b;
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** The input of a layer as gate and experts see it. */
export function normed(row: Row): Row {
  return { a: (row.a ^ 0x5bd1e995) >>> 0, b: mix(row.b, 0x9747b28c) };
}

export function expertResult(layer: number, expert: number, row: Row): Row {
  const key = layer * 0x10001 + expert + 1;
  const a = mix(row.a ^ key, row.b);
  return { a, b: mix(row.b + key, a) };
}

/** The score by which a row chooses an expert, in [0, 1): some experts are liked better by all. */
export function score(layer: number, expert: number, row: Row): number {
  const liked = mix(layer + 1, expert + 77) / 2 ** 32;
  return 0.6 * (mix(row.a + expert * 0x9e3779b1, row.b ^ (layer + 1)) / 2 ** 32) + 0.4 * liked ** 3;
}

/** A whole number that a float32 holds. */
export function weight(layer: number, expert: number, row: Row): number {
  return 1 + (mix(row.b ^ 0xabcdef, row.a + layer * 31 + expert) & 0x3ff);
}

/** The experts that a row chooses, best first. `bias`: what the feedback loop adds to scores. */
export function choose(
  row: Row,
  layer: number,
  { experts, topK, bias }: { experts: number; topK: number; bias: Float32Array | null },
): number[] {
  const scores = Array.from(
    { length: experts },
    (_, expert) => score(layer, expert, row) + (bias?.[expert] ?? 0),
  );
  const order = scores.map((_, expert) => expert).sort((x, y) => scores[y]! - scores[x]! || x - y);
  return order.slice(0, topK);
}

export function addWeighted(sum: Row, by: number, row: Row): void {
  sum.a = (sum.a + Math.imul(by, row.a)) >>> 0;
  sum.b = (sum.b + Math.imul(by, row.b)) >>> 0;
}

/** The identity of a token of a batch. */
export function tokenRow(batch: number, token: number): Row {
  return { a: mix(batch + 1, token), b: mix(token + 0x1234567, batch) };
}
