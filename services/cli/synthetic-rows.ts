import type { RowsReader } from '../client/index.js';
import { copied } from '../client/source.js';

export interface SyntheticBatch {
  sequences: number;
  length: number;
  seed: number;
  skew: number;
  topics: number;
}

/** Token embeddings made as they are asked for: equal options give equal rows on every machine. */
export async function syntheticRows(hidden: number, batch: SyntheticBatch): Promise<RowsReader> {
  // Loaded here so that commands which make no rows run without the addon.
  const { native } = await import('../../native/index.js');
  const { sequences, length, seed, skew, topics } = batch;
  const readSlab = (firstToken: number, count: number) =>
    native.synthesizeTokens({ seed, firstToken, count, hidden, skew, topics });
  return {
    tokens: sequences * length,
    hidden,
    sequences,
    read: (first, count) => copied(readSlab(first, count)),
    readSlab,
  };
}
