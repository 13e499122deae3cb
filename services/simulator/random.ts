import type { Random } from '../runtime/random.js';

/** Chance that a seed decides: sfc32, by Chris Doty-Humphrey. */
export class SeededRandom implements Random {
  private readonly state: Uint32Array;

  constructor(seed: number, stream = 0) {
    this.state = Uint32Array.of(seed, Math.floor(seed / 2 ** 32), stream, 1);
    for (let i = 0; i < 12; i += 1) this.word();
  }

  /** 32 bits. */
  word(): number {
    const { state } = this;
    const sum = (state[0]! + state[1]! + state[3]!) >>> 0;
    state[3]! += 1;
    state[0] = state[1]! ^ (state[1]! >>> 9);
    state[1] = state[2]! + (state[2]! << 3);
    state[2] = ((state[2]! << 21) | (state[2]! >>> 11)) + sum;
    return sum;
  }

  /** Chance of its own for one who is not to disturb the others. */
  fork(): SeededRandom {
    return new SeededRandom(this.word(), this.word());
  }

  unit(): number {
    return this.word() / 2 ** 32;
  }

  bytes(count: number): Buffer {
    const bytes = Buffer.alloc(count);
    for (let i = 0; i < count; i += 1) bytes[i] = this.word();
    return bytes;
  }

  uuid(): string {
    const bytes = this.bytes(16);
    bytes[6] = (bytes[6]! & 0x0f) | 0x40;
    bytes[8] = (bytes[8]! & 0x3f) | 0x80;
    const hex = bytes.toString('hex');
    return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
  }

  /** From `least` to below `end`. */
  between(least: number, end: number): number {
    return least + (end - least) * this.unit();
  }

  /** A whole number from `least` to `most`. */
  integer(least: number, most: number): number {
    return least + Math.floor((most - least + 1) * this.unit());
  }

  /** Between the two, each order of magnitude as likely as the others. */
  magnitude(least: number, most: number): number {
    return least * (most / least) ** this.unit();
  }

  /** Of waiting times whose mean is `mean`. */
  exponential(mean: number): number {
    return -mean * Math.log(1 - this.unit());
  }

  chance(probability: number): boolean {
    return this.unit() < probability;
  }

  /** One of them, which must not be none. */
  pick<T>(from: readonly T[]): T {
    return from[this.integer(0, from.length - 1)]!;
  }

  shuffled<T>(from: readonly T[]): T[] {
    const shuffled = [...from];
    for (let i = shuffled.length - 1; i > 0; i -= 1) {
      const j = this.integer(0, i);
      [shuffled[i], shuffled[j]] = [shuffled[j]!, shuffled[i]!];
    }
    return shuffled;
  }
}
