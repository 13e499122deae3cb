/** A set of numbers that are each taken once, as ranges: small, if they are taken nearly in order, however many there are. */
export class TokenRanges {
  /** [first, end): ascending, apart from each other. */
  private ranges: [number, number][] = [];

  /** Takes `first` to `end` - 1; false: one of them is taken already, and nothing changes. */
  take(first: number, end: number): boolean {
    const before = this.ranges.filter((range) => range[1] <= first);
    const after = this.ranges.filter((range) => range[0] >= end);
    if (before.length + after.length !== this.ranges.length) return false;
    const joined: [number, number] = [first, end];
    if (before.at(-1)?.[1] === first) joined[0] = before.pop()![0];
    if (after[0]?.[0] === end) joined[1] = after.shift()![1];
    this.ranges = [...before, joined, ...after];
    return true;
  }

  /** The first number from 0 on that is not taken. */
  get firstMissing(): number {
    const [first] = this.ranges;
    return first === undefined || first[0] > 0 ? 0 : first[1];
  }
}
