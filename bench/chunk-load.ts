import type { RowsReader, SwitchyardClient } from '../services/client/index.js';

/** What came of the batches that ended within some time. */
export interface Interval {
  seconds: number;
  tokensPerSecond: number;
  chunks: number;
  /** Of a batch of one chunk, from its call to its last answer. */
  p99Ms: number;
}

/** Batches of one chunk each; so many are under way that the workers are always busy. */
const underWay = 8;

/**
 * Keeps batches under way, and knows when each ended, how long it took, and whether its answer is what it was at first. It ends with the
 * first that fails.
 */
export class ChunkLoad {
  /** Why batches failed, or that they had other answers. */
  readonly failed: string[] = [];
  private readonly ended: { atMs: number; ms: number }[] = [];
  private readonly all: Promise<void>[];
  private going = true;
  private next = 0;

  private constructor(
    private readonly client: SwitchyardClient,
    private readonly chunks: readonly { rows: Uint8Array; answer: Buffer }[],
    private readonly tokens: number,
  ) {
    this.all = Array.from({ length: underWay }, () => this.run());
  }

  /** `rows`: of which each batch gets `tokens`. */
  static async start(client: SwitchyardClient, rows: RowsReader, tokens: number): Promise<ChunkLoad> {
    const chunks: { rows: Uint8Array; answer: Buffer }[] = [];
    for (let first = 0; first + tokens <= rows.tokens; first += tokens) {
      const own = await rows.read(first, tokens);
      chunks.push({ rows: own, answer: await forward(client, own) });
    }
    return new ChunkLoad(client, chunks, tokens);
  }

  /** What ends while `work` goes on. */
  async during(work: () => Promise<unknown>): Promise<Interval> {
    const startMs = performance.now();
    await work();
    const seconds = (performance.now() - startMs) / 1000;
    const own = this.ended.filter(({ atMs }) => atMs >= startMs).map(({ ms }) => ms);
    own.sort((a, b) => a - b);
    return {
      seconds,
      tokensPerSecond: (own.length * this.tokens) / seconds,
      chunks: own.length,
      p99Ms: own[Math.ceil(own.length * 0.99) - 1] ?? Number.POSITIVE_INFINITY,
    };
  }

  async stop(): Promise<void> {
    this.going = false;
    await Promise.all(this.all);
  }

  private async run(): Promise<void> {
    while (this.going && this.failed.length === 0) {
      const { rows, answer } = this.chunks[this.next++ % this.chunks.length]!;
      const startMs = performance.now();
      try {
        if (!(await forward(this.client, rows)).equals(answer))
          this.failed.push('other answers than at first');
      } catch (error) {
        this.failed.push(String(error));
      }
      const atMs = performance.now();
      this.ended.push({ atMs, ms: atMs - startMs });
    }
  }
}

async function forward(client: SwitchyardClient, rows: Uint8Array): Promise<Buffer> {
  const call = await client.forward(rows, { sequences: 1, feedback: false });
  const { rows: answers } = await call.collect();
  return Buffer.from(answers.buffer, answers.byteOffset, answers.byteLength);
}
