import { readFileSync } from 'node:fs';

/** As Linux counts CPU time: USER_HZ. */
export const ticksPerSecond = 100;

/** CPU seconds of all cores since the machine started, idle ones left out. */
export function busySeconds(): number {
  // user nice system idle iowait irq softirq steal
  const ticks = readFileSync('/proc/stat', 'utf8')
    .split('\n')[0]!
    .trim()
    .split(/\s+/)
    .slice(1, 9)
    .map(Number);
  const idle = ticks[3]! + ticks[4]!;
  return (ticks.reduce((sum, count) => sum + count, 0) - idle) / ticksPerSecond;
}
