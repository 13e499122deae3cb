/** The least, the middle and the largest of some values. */
export interface Spread {
  min: number;
  p50: number;
  max: number;
}

/** All 0 if there are no values. */
export function spreadOf(values: ArrayLike<number>): Spread {
  const sorted = Float64Array.from(values).sort();
  const at = (share: number) => sorted[Math.round((sorted.length - 1) * share)] ?? 0;
  return { min: at(0), p50: at(0.5), max: at(1) };
}
