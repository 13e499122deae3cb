import { SingleBar } from 'cli-progress';
import { count, seconds } from './format.js';

/** Shows how far a batch is, with rate and time to go: a bar on a terminal, nothing elsewhere. */
export class Progress {
  private readonly bar: SingleBar | null;
  private readonly startedMs = performance.now();
  private done = 0;

  constructor(private readonly tokens: number) {
    this.bar = process.stderr.isTTY
      ? new SingleBar({
          format: '{bar} {percentage} % | {value}/{total} tokens | {rate} tokens/s | {left} to go',
          stream: process.stderr,
          hideCursor: true,
          fps: 5,
        })
      : null;
    this.bar?.start(tokens, 0, { rate: '-', left: '-' });
  }

  add(tokens: number): void {
    this.done += tokens;
    const rate = this.done / ((performance.now() - this.startedMs) / 1000);
    this.bar?.update(this.done, { rate: count(rate), left: seconds((this.tokens - this.done) / rate) });
  }

  stop(): void {
    this.bar?.stop();
  }
}
