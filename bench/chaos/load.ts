import { createHash } from 'node:crypto';
import { syntheticRows } from '../../services/cli/synthetic-rows.js';
import type { RowsReader, SwitchyardClient } from '../../services/client/index.js';

export interface LoadReport {
  batches: number;
  /** Codes and messages of batches that failed. */
  failed: string[];
  /** Rows of batches that ended well without having been answered. */
  rowsLost: number;
  /** Batches of which an answer differs from what it is without faults. */
  mismatches: number;
}

const sequences = 4;
/** Tokens of a sequence, by stream: batches that are calls of their own, and smaller ones, which go over sessions. */
const lengths = [512, 128, 32];
/** Of several, so that rows go to all experts, and a worker that is lost has always some of them. */
const chunkTokens = 128;
const skew = 0.8;
const topics = 64;

/** By stream: the rows of its batches. */
export async function loadRows(hidden: number): Promise<RowsReader[]> {
  return Promise.all(
    lengths.map(async (length, stream) =>
      syntheticRows(hidden, { sequences, length, seed: 100 + stream, skew, topics }),
    ),
  );
}

/** One batch, whose answers are told as they come: its digest, and how many rows had none. */
export async function runBatch(client: SwitchyardClient, rows: RowsReader, onAnswer: () => void) {
  const rowBytes = rows.hidden * 2;
  const output = Buffer.alloc(rows.tokens * rowBytes);
  const answered = new Uint8Array(rows.tokens);
  // The feedback loop's bias depends on when loads are reported.
  const call = await client.forward(rows, { feedback: false, combine: 'exact', chunkTokens });
  await call.into({
    write: async (first, part) => {
      onAnswer();
      output.set(part, first * rowBytes);
      for (let row = 0; row < part.byteLength / rowBytes; row += 1) answered[first + row]! += 1;
    },
  });
  const rowsLost = answered.filter((times) => times !== 1).length;
  return { digest: createHash('sha256').update(output).digest('hex'), rowsLost };
}

/** Streams of batches, one after the other, until told to end; remembers when answers came. */
export class Load {
  readonly report: LoadReport = { batches: 0, failed: [], rowsLost: 0, mismatches: 0 };
  private readonly streams: Promise<void>[];
  /** By stream: when the last answer came, as performance.now(). */
  private readonly answeredMs: number[];
  private longestMs = 0;
  private ending = false;

  /** `expected`: by stream, the digest of its batch without faults. */
  constructor(client: SwitchyardClient, rows: readonly RowsReader[], expected: readonly string[]) {
    const now = performance.now();
    this.answeredMs = rows.map(() => now);
    this.streams = rows.map((reader, stream) => this.run(client, reader, stream, expected[stream]!));
  }

  /** The longest time without an answer on any stream since the last call, in milliseconds, that which goes on included. */
  takeLongestPause(): number {
    const now = performance.now();
    const longest = Math.max(this.longestMs, ...this.answeredMs.map((ms) => now - ms));
    this.longestMs = 0;
    return longest;
  }

  /** Resolves when the batches under way have ended. */
  async end(): Promise<LoadReport> {
    this.ending = true;
    await Promise.all(this.streams);
    return this.report;
  }

  private async run(
    client: SwitchyardClient,
    rows: RowsReader,
    stream: number,
    expected: string,
  ): Promise<void> {
    const { report } = this;
    while (!this.ending) {
      report.batches += 1;
      try {
        const { digest, rowsLost } = await runBatch(client, rows, () => this.answered(stream));
        report.rowsLost += rowsLost;
        if (digest !== expected) report.mismatches += 1;
      } catch (error) {
        const { code, message } = error as Error & { code?: string };
        report.failed.push(`${code}: ${message}`);
      }
    }
  }

  private answered(stream: number): void {
    const now = performance.now();
    this.longestMs = Math.max(this.longestMs, now - this.answeredMs[stream]!);
    this.answeredMs[stream] = now;
  }
}
