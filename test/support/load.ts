import type { SwitchyardClient } from '../../services/client/index.js';
import { testRows } from './rows.js';
import { until } from './until.js';

const tokens = 600;

/** Keeps four batches under way through a cluster of the preset `tiny`; fails with the first that fails or has another answer than without it. */
export class Load {
  complete = 0;
  private going = true;
  private readonly all: Promise<void>;

  private constructor(
    private readonly client: SwitchyardClient,
    private readonly rows: Uint8Array,
    expected: Buffer,
  ) {
    const one = async () => {
      while (this.going) {
        if (!(await forward(this.client, this.rows)).equals(expected)) throw new Error('another answer');
        this.complete += 1;
      }
    };
    this.all = Promise.all([one(), one(), one(), one()]).then(() => {});
    this.all.catch(() => {});
  }

  /** `client`: of the caller. */
  static async start(client: SwitchyardClient): Promise<Load> {
    const rows = testRows(tokens, 256);
    return new Load(client, rows, await forward(client, rows));
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
