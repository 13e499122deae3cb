import type { SwitchyardError } from '../common/errors.js';
import type { ArrivedChunk, ChunkChannel } from '../transport/chunk-channel.js';

/** Offset, rows and routing of an answer; rows that came over UCX are not in it. */
interface AnsweredTokens {
  offset: number;
  rows: Uint8Array;
  experts: Uint8Array;
  weights: Uint8Array;
}

/** A router's answer. Its rows are taken once, in one of the two ways; over UCX the router may then send more. */
export class RouterChunk {
  readonly rowBytes: number;
  /** What ended the call before the rows were taken. */
  lost: SwitchyardError | null = null;

  constructor(
    readonly chunk: AnsweredTokens,
    private readonly over: { channel: ChunkChannel; arrived: ArrivedChunk; taken: () => void } | null,
  ) {
    this.rowBytes = over?.arrived.rowBytes ?? chunk.rows.byteLength;
  }

  /** The rows in memory of their own. */
  async own(): Promise<Uint8Array> {
    if (this.over === null) return this.chunk.rows;
    const { channel, arrived, taken } = this.over;
    taken();
    return channel.copyOut(arrived);
  }

  /** Calls `use` with the rows, which are its own until its promise settles. */
  async lend(use: (rows: Uint8Array) => Promise<void>): Promise<void> {
    if (this.over === null) return use(this.chunk.rows);
    const { channel, arrived, taken } = this.over;
    taken();
    return channel.lend(arrived, use);
  }

  /** Gives the rows up: nobody has taken them, and the call is over. */
  drop(reason: SwitchyardError): void {
    this.lost = reason;
    this.over?.arrived.slab.release();
  }
}
