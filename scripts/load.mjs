/** Batches that are kept under way for a check: each must have the answer that the first had. */
import { randomFillSync } from 'node:crypto';

const tokens = 600;
const hidden = 256;
const atOnce = 4;

export class Load {
  complete = 0;
  longestMs = 0;
  #going = true;
  #all;

  constructor(client, rows, expected) {
    const one = async () => {
      while (this.#going) {
        const startedMs = performance.now();
        const answer = await forward(client, rows);
        this.longestMs = Math.max(this.longestMs, performance.now() - startedMs);
        if (!answer.equals(expected)) throw new Error('a batch has another answer than the first one');
        this.complete += 1;
      }
    };
    this.#all = Promise.all(Array.from({ length: atOnce }, one));
    this.#all.catch(() => {});
  }

  /** At a cluster of the preset `tiny` that is ready. */
  static async start(client) {
    const rows = bf16Rows();
    return new Load(client, rows, await forward(client, rows));
  }

  /** Resolves when so many more are complete; rejects if one fails. */
  async more(count) {
    const enough = this.complete + count;
    while (this.complete < enough) {
      await Promise.race([this.#all, new Promise((resolve) => setTimeout(resolve, 10))]);
    }
  }

  /** Resolves when those under way are complete. */
  async stop() {
    this.#going = false;
    await this.#all;
  }
}

/** Of magnitudes from 2^-15 to 2. */
function bf16Rows() {
  const rows = randomFillSync(new Uint16Array(tokens * hidden));
  for (const [at, bits] of rows.entries()) rows[at] = (bits & 0x87ff) | 0x3800;
  return new Uint8Array(rows.buffer);
}

async function forward(client, rows) {
  const call = await client.forward(rows, { sequences: 6, feedback: false, chunkTokens: 64 });
  return Buffer.from((await call.collect()).rows);
}
