/** However long the lease: figures are to be fresh. */
const heartbeatMsMax = 1_000;

/** How often whoever holds a lease lets itself be heard: three times within it. */
export function heartbeatMsOf(leaseMs: number): number {
  return Math.min(heartbeatMsMax, leaseMs / 3);
}

/**
 * For how long the other end was silent when it should have been heard. A process that stood still for less than the lease survives it,
 * whenever its last heartbeat was: what is beyond the lease is too much.
 */
export function overdueMs(silentMs: number, leaseMs: number): number {
  return Math.max(0, silentMs - heartbeatMsOf(leaseMs));
}

/**
 * The time in which this process itself stood still, or its looks came late: whoever it waits for is not to blame for it, and what they said
 * meanwhile is still to be read.
 */
export class Standstill {
  /** `lookedAtMs`: from when on it looks. */
  constructor(private lookedAtMs: number) {}

  /** How long it stood still since the last look. To be called every `everyMs`. */
  look(nowMs: number, everyMs: number): number {
    const lateMs = nowMs - this.lookedAtMs - everyMs;
    this.lookedAtMs = nowMs;
    return lateMs > everyMs ? lateMs : 0;
  }
}
