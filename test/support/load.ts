import type { SwitchyardClient } from '../../services/client/index.js';
import { testRows } from './rows.js';
import { until } from './until.js';

const tokens = 600;

/** Keeps four batches under way until it is stopped; fails with the first that fails or has another answer. */
export class Load {
  complete = 0;
  private going = true;
  private readonly all: Promise<void>;

  /** `send`: sends the batch and resolves with its answer. */
  constructor(send: () => Promise<Buffer>, expected: Buffer) {
    const one = async () => {
      while (this.going) {
        if (!(await send()).equals(expected)) throw new Error('another answer');
        this.complete += 1;
      }
    };
    this.all = Promise.all([one(), one(), one(), one()]).then(() => {});
    this.all.catch(() => {});
  }

  /** Through a cluster of the preset `tiny`, whose answer is now what it is to be. */
  static async start(client: SwitchyardClient): Promise<Load> {
    const rows = testRows(tokens, 256);
    const send = () => forward(client, rows);
    return new Load(send, await send());
  }

  /** Resolves when so many more batches are complete. */
  async more(count: number): Promise<void> {
    const enough = this.complete + count;
    await Promise.race([until(() => this.complete >= enough), this.all]);
  }

  stop(): Promise<void> {
    this.going = false;
    return this.all;
  }
}

/** In the order of the tokens. */
async function forward(client: SwitchyardClient, rows: Uint8Array): Promise<Buffer> {
  const call = await client.forward(rows, { sequences: 6, feedback: false, chunkTokens: 64 });
  const { rows: answers } = await call.collect();
  return Buffer.from(answers);
}
