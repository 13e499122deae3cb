const keptMax = 400;

/** What happened, in order: a hash of all of it, and its end in words. */
export class EventLog {
  private readonly kept: string[] = [];
  private a = 0x811c9dc5;
  private b = 0x01000193;

  constructor(
    private readonly nowMs: () => number,
    /** Gets each line as it happens. */
    private readonly listener: ((line: string) => void) | null = null,
  ) {}

  add(who: string, what: string): void {
    const line = `${this.nowMs().toFixed(3).padStart(11)} ${who.padEnd(14)} ${what}`;
    for (let i = 0; i < line.length; i += 1) {
      const code = line.charCodeAt(i);
      this.a = Math.imul(this.a ^ code, 0x01000193);
      this.b = Math.imul(this.b ^ code, 0x85ebca6b) + this.a;
    }
    this.kept.push(line);
    if (this.kept.length >= 2 * keptMax) this.kept.splice(0, keptMax);
    this.listener?.(line);
  }

  /** Two runs with equal hashes did the same. */
  get hash(): string {
    return [this.a, this.b].map((word) => (word >>> 0).toString(16).padStart(8, '0')).join('');
  }

  last(count: number): string[] {
    return this.kept.slice(-Math.min(count, keptMax));
  }
}
