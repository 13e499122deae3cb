import { native } from '../native/index.js';
import type { ForwardCall, ForwardOptions, RowsReader, SwitchyardClient } from '../services/client/index.js';

/** Tokens per second of one batch, as the client sees it; the answers are dropped. */
export async function submit(
  client: SwitchyardClient,
  rows: RowsReader,
  options: ForwardOptions,
): Promise<number> {
  return rows.tokens / (await drain(await client.forward(rows, options), rows.hidden));
}

/** Takes all answers of a batch and drops them. Returns the seconds that it took. */
export async function drain(call: ForwardCall, hidden: number): Promise<number> {
  let bytes = 0;
  const sink = {
    write: (_first: number, rows: Uint8Array) => {
      bytes += rows.byteLength;
    },
  };
  const { tokens, seconds } = await call.into(sink);
  const answered = bytes / (hidden * 2);
  if (answered !== tokens) throw new Error(`${answered} of ${tokens} tokens came back`);
  return seconds;
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
      const parts: Uint8Array[] = [];
      for (let at = start, left = count; left > 0; at = 0) {
        const taken = Math.min(left, made - at);
        parts.push(bytes.subarray(at * rowBytes, (at + taken) * rowBytes));
        left -= taken;
      }
      return Buffer.concat(parts);
    },
  };
}
