/** Consecutive tokens of the batch, and where they lie in their router's share of it. */
export interface TokenRun {
  router: number;
  /** In tokens, from the start of the share. */
  offset: number;
  /** In tokens, from the start of the batch. */
  first: number;
  count: number;
}

/** What one router gets: whole sequences, in ascending order. */
export interface Share {
  sequences: number;
  tokens: number;
  runs: TokenRun[];
}

/** Stripes shorter than this would cost more messages than they balance. */
const stripeTokensMin = 4096;

/**
 * Splits a batch over routers by whole sequences. A batch that can be read anywhere gets one contiguous
 * run per router; one that comes as a stream is dealt in stripes, so that all routers work while it is read.
 * Never more shares than sequences. Returns the shares, and all runs in the order of the batch.
 */
export function splitBatch(
  sequences: number,
  length: number,
  routers: number,
  streamed: boolean,
): { shares: Share[]; runs: TokenRun[] } {
  const count = Math.min(routers, sequences);
  const shares: Share[] = Array.from({ length: count }, () => ({ sequences: 0, tokens: 0, runs: [] }));
  const stripe = streamed ? Math.max(1, Math.ceil(stripeTokensMin / length)) : sequences / count;
  const runs: TokenRun[] = [];
  for (let index = 0, begin = 0; begin < sequences; index++) {
    const end = Math.min(sequences, Math.round((index + 1) * stripe));
    const router = index % count;
    const share = shares[router]!;
    const run = { router, offset: share.tokens, first: begin * length, count: (end - begin) * length };
    share.sequences += end - begin;
    share.tokens += run.count;
    share.runs.push(run);
    runs.push(run);
    begin = end;
  }
  return { shares: shares.filter((share) => share.tokens > 0), runs };
}

/** The parts of the batch that `count` tokens from `offset` of a share on are. */
export function locate(share: Share, offset: number, count: number): { first: number; count: number }[] {
  const parts: { first: number; count: number }[] = [];
  for (let index = runAt(share.runs, offset); count > 0; index++) {
    const run = share.runs[index]!;
    const skipped = offset - run.offset;
    const taken = Math.min(count, run.count - skipped);
    parts.push({ first: run.first + skipped, count: taken });
    offset += taken;
    count -= taken;
  }
  return parts;
}

function runAt(runs: readonly TokenRun[], offset: number): number {
  let low = 0;
  let high = runs.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (runs[middle]!.offset <= offset) low = middle;
    else high = middle - 1;
  }
  return low;
}
