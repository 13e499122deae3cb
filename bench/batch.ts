import { native } from '../native/index.js';
import type { ForwardOptions, RowsReader, SwitchyardClient } from '../services/client/index.js';

/** Tokens per second of one batch, as the client sees it; the answers are dropped. */
export async function submit(
  client: SwitchyardClient,
  rows: RowsReader,
  options: ForwardOptions,
): Promise<number> {
  const call = await client.forward(rows, options);
  let tokens = 0;
  for await (const chunk of call) tokens += chunk.count;
  const { seconds } = await call.summary;
  if (tokens !== rows.tokens) throw new Error(`${tokens} of ${rows.tokens} tokens came back`);
  return tokens / seconds;
}

const rowsMade = 4_096;

/** The same few rows again and again: making new ones would be measured with the cluster. */
export async function repeatedRows(hidden: number, tokens: number): Promise<RowsReader> {
  const made = Math.min(tokens, rowsMade);
  const slab = await native.synthesizeTokens({
    seed: 5,
    firstToken: 0,
    count: made,
    hidden,
    skew: 0,
    topics: 1_024,
  });
  const bytes = slab.view();
  const rowBytes = hidden * 2;
  return {
    tokens,
    hidden,
    sequences: 1,
    read: (first, count) => {
      const start = first % made;
      if (start + count <= made) return bytes.subarray(start * rowBytes, (start + count) * rowBytes);
      const wrapped = start + count - made;
      return Buffer.concat([bytes.subarray(start * rowBytes), bytes.subarray(0, wrapped * rowBytes)]);
    },
  };
}
