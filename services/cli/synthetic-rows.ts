import type { RowsReader } from '../client/index.js';

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
  return {
    tokens: sequences * length,
    hidden,
    sequences,
    read: async (firstToken, count) => {
      const slab = await native.synthesizeTokens({ seed, firstToken, count, hidden, skew, topics });
      try {
        return Buffer.from(slab.view());
      } finally {
        slab.release();
      }
    },
  };
}
