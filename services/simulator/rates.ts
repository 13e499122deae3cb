import type { SeededRandom } from './random.js';

/**
 * How long things take: the one place where the simulator models time. All times are milliseconds, all rates per millisecond, drawn
 * for each seed.
 */
export interface Rates {
  /** One way between two hosts. */
  latencyMs: number;
  /** Within a host. */
  loopbackMs: number;
  /** On top of that, for each message: exponential, of this mean. */
  jitterMs: number;
  bytesPerMs: number;
  /** What a stream takes before its peer has read: HTTP/2's windows. */
  streamWindowBytes: number;
  /** Until a connection that nobody answers is given up. */
  connectMsMax: number;
  /** Until a host that went silent is noticed on a stream without a lease. */
  silenceMsMax: number;
  /** Of an operation on rows: routing, packing, combining. */
  operationMs: number;
  operationRowMs: number;
  /** A call to a device, whatever its rows. */
  callMs: number;
  /** Until the model is open. */
  openMs: number;
}

export function drawRates(random: SeededRandom): Rates {
  return {
    latencyMs: random.magnitude(0.05, 20),
    loopbackMs: 0.02,
    jitterMs: random.magnitude(0.01, 5),
    bytesPerMs: random.magnitude(2_000, 10_000_000),
    streamWindowBytes: random.pick([16, 64, 1024]) * 1024,
    connectMsMax: 20_000,
    silenceMsMax: 20_000,
    operationMs: random.magnitude(0.01, 2),
    operationRowMs: random.magnitude(0.0001, 0.01),
    callMs: random.magnitude(0.02, 2),
    openMs: random.magnitude(1, 500),
  };
}

/** Of one worker: devices differ, and so do disks. */
export interface DeviceRates {
  rowMs: number;
  /** To load one expert. */
  loadMs: number;
}

export function drawDevice(random: SeededRandom): DeviceRates {
  // Every tenth worker is slow, and its disk too.
  const slow = random.chance(0.1) ? 20 : 1;
  return { rowMs: random.magnitude(0.001, 0.1) * slow, loadMs: random.magnitude(1, 300) * slow };
}

/** How the clock of a host goes: how fast beside true time, and what it believes the time to be, which may jump. */
export interface ClockSkew {
  readonly rate: number;
  wallMs: number;
}

const wallStartMs = Date.UTC(2030, 0, 1);

export function drawClock(random: SeededRandom): ClockSkew {
  return {
    rate: 1 + random.between(-0.01, 0.01),
    wallMs: wallStartMs + Math.round(random.between(-90_000, 90_000)),
  };
}
