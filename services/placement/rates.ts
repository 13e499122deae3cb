/** Measured rates of workers of one kind differ by chance, and by what they computed, by so much of their median. */
const chanceShare = 0.1;

/**
 * Rates to reckon with: those that differ from the median by no more than chance does are the same, so that it moves no rows and no copies; what was not
 * measured (null) is the median. `assumed` is that where nothing was measured.
 */
export function usualRates(measured: readonly (number | null)[], assumed: number): number[] {
  const known = measured.filter((rate) => rate !== null).sort((a, b) => a - b);
  const middle = known.length >> 1;
  const median =
    known.length === 0
      ? assumed
      : known.length % 2 === 1
        ? known[middle]!
        : (known[middle - 1]! + known[middle]!) / 2;
  return measured.map((rate) =>
    rate === null || Math.abs(rate - median) <= chanceShare * median ? median : rate,
  );
}
