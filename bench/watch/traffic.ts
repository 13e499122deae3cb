import { syntheticRows } from '../../services/cli/synthetic-rows.js';
import type { ForwardOptions, RowsReader, SwitchyardClient } from '../../services/client/index.js';

/** Batches one after another, on some streams at once; those that fail are followed by others. */
export class Traffic {
  private streams: Promise<void>[] = [];
  private going = false;

  private constructor(
    private readonly client: SwitchyardClient,
    private readonly rows: RowsReader,
  ) {}

  /** `skew`: how much more often some topics come than others. */
  static async prepare(client: SwitchyardClient, skew: number): Promise<Traffic> {
    const { hidden } = await client.describeModel();
    const batch = { sequences: 8, length: 512, seed: 3, skew, topics: 64 };
    return new Traffic(client, await syntheticRows(hidden, batch));
  }

  start(streams: number, options: ForwardOptions = { chunkTokens: 128 }): void {
    this.going = true;
    this.streams = Array.from({ length: streams }, () => this.run(options));
  }

  /** Resolves when the batches under way have ended. */
  async stop(): Promise<void> {
    this.going = false;
    await Promise.all(this.streams);
  }

  private async run(options: ForwardOptions): Promise<void> {
    while (this.going) {
      try {
        const call = await this.client.forward(this.rows, { feedback: false, ...options });
        await call.into({ write: () => {} });
      } catch {
        // A batch that a fault ends is what the trial is about.
      }
    }
  }
}
