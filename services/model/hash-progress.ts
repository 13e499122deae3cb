import type { Logger } from '../common/log.js';

const everyMs = 10_000;

/** Tells in a log how the hashing of a model's files goes, if it takes long. */
export class HashProgress {
  private bytesTotal = 0;
  private bytesDone = 0;
  private bytesHashed = 0;
  private startedMs = 0;
  private toldMs = 0;

  constructor(private readonly log: Logger | null) {}

  begin(bytesTotal: number): void {
    this.bytesTotal = bytesTotal;
    this.startedMs = performance.now();
    this.toldMs = this.startedMs;
  }

  /** `hashed`: read and hashed now; otherwise remembered. */
  add(bytes: number, hashed: boolean): void {
    this.bytesDone += bytes;
    if (hashed) this.bytesHashed += bytes;
    if (performance.now() - this.toldMs < everyMs) return;
    this.toldMs = performance.now();
    const { bytesDone, bytesTotal } = this;
    this.log?.info({ event: 'hashing-weights', bytesDone, bytesTotal });
  }

  end(): void {
    if (this.bytesHashed === 0) return;
    const seconds = (performance.now() - this.startedMs) / 1000;
    this.log?.info({ event: 'weights-hashed', bytes: this.bytesHashed, seconds });
  }
}
