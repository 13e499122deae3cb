/** Two of the largest chunks that clients send: one on its way while the router takes another. */
const windowBytesMax = 16 * 1024 * 1024;
/** Beside one token: room for more than one short row. */
const windowBytesMin = 64 * 1024;

export interface ChannelWindowsOptions {
  /** Of all windows together. */
  bytesMax: number;
  /** The largest rows field of a client's message. */
  messageBytesMax: number;
  batchesMax: number;
}

/** A window that is taken: what its client may have outstanding on its channel. */
export interface ChannelWindow {
  readonly bytes: number;
  /** Idempotent. */
  giveBack(): void;
}

/** The windows of a router's clients over UCX, parts of a fixed sum. */
export class ChannelWindows {
  private freeBytes: number;
  private open = 0;

  constructor(private readonly options: ChannelWindowsOptions) {
    this.freeBytes = options.bytesMax;
  }

  /** A window that has room for `tokenBytes` and no more than `bytesMax`; null: none is left. */
  take(tokenBytes: number, bytesMax = windowBytesMax): ChannelWindow | null {
    const bytes = this.next(tokenBytes, bytesMax);
    if (bytes > this.freeBytes) return null;
    this.freeBytes -= bytes;
    this.open += 1;
    let held = true;
    const giveBack = () => {
      if (!held) return;
      held = false;
      this.freeBytes += bytes;
      this.open -= 1;
    };
    return { bytes, giveBack };
  }

  /** What `open` makes with a window as `take` gives it, or in words, why there is none. One that cannot be made keeps no window. */
  giveTo<Channel>(
    open: (window: ChannelWindow) => Channel,
    ...room: Parameters<ChannelWindows['take']>
  ): Channel | string {
    const window = this.take(...room);
    if (window === null) return this.whyNone();
    try {
      return open(window);
    } catch (error) {
      window.giveBack();
      throw error;
    }
  }

  private whyNone(): string {
    const { bytesMax } = this.options;
    return (
      `no window is left: ${this.open} batches share ${bytesMax} bytes, a quarter of the router's budgetBytes, ` +
      `and ${this.freeBytes} of them are free`
    );
  }

  /**
   * A quarter of what is left beside the smallest windows of all batches that may still come, so that few batches have large
   * windows and as many as there may be have one.
   */
  private next(tokenBytes: number, bytesMax: number): number {
    const { batchesMax, messageBytesMax, bytesMax: sum } = this.options;
    const min = windowBytesMin + tokenBytes;
    const kept = Math.min((batchesMax - this.open - 1) * min, sum / 2);
    const quarter = Math.floor((this.freeBytes - kept) / 4);
    return Math.max(min, Math.min(bytesMax, 2 * messageBytesMax, quarter));
  }
}
