import type { Peer } from './peer.js';
import { type BenchResult, median, summarize } from './report.js';

/** CPU seconds of one call with `rows` rows, for an implementation that holds several experts with that one. */
export type Call = (rows: number, expert: number) => Promise<number>;

/** CPU seconds of ours and of every peer, one after the other, and the limits of the core at that time. */
export interface Turn {
  ours: number;
  peers: Record<string, number>;
  /** Operations a second. */
  registers: number;
  cached: number;
  /** Bytes a second. */
  read: number;
}

/** CPU time that this process took for an action. All that is compared here counts so, because other programs must not count. */
export async function cpuSeconds(action: () => Promise<unknown>): Promise<number> {
  const before = process.cpuUsage();
  await action();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
}

/**
 * Every implementation computes the same number of rows `count` times; experts change from turn to turn. With one row a turn is a call for every expert, as
 * its limit is reading that much memory, and a single call is short.
 */
export async function takeTurns(
  count: number,
  expertCount: number,
  rows: number,
  ours: Call,
  peers: Record<string, Call>,
  limits: Peer,
): Promise<Turn[]> {
  // Uncounted, every expert once: fresh memory is slow, and some pack weights for this number of rows.
  for (let expert = 0; expert < expertCount; expert++) {
    for (const call of [ours, ...Object.values(peers)]) await call(rows, expert);
  }
  const timed = async (call: Call, first: number) => {
    const calls = rows === 1 ? expertCount : 1;
    let seconds = 0;
    for (let next = 0; next < calls; next++) seconds += await call(rows, (first + next) % expertCount);
    return seconds / calls;
  };
  const turns: Turn[] = [];
  for (let index = 0; index < count; index++) {
    const expert = index % expertCount;
    // The peaks before and after ours, because the clock of a core drifts.
    const before = { registers: await limits.ask('registers'), cached: await limits.ask('cached') };
    const turn: Turn = { ours: await timed(ours, expert), peers: {}, registers: 0, cached: 0, read: 0 };
    turn.registers = (before.registers + (await limits.ask('registers'))) / 2;
    turn.cached = (before.cached + (await limits.ask('cached'))) / 2;
    turn.read = await limits.ask('read');
    for (const [name, call] of Object.entries(peers)) turn.peers[name] = await timed(call, expert);
    turns.push(turn);
  }
  return turns;
}

/** Operations a second: the better of the two peaks. */
const peakOf = (turn: Turn) => Math.max(turn.registers, turn.cached);

/**
 * What a call with `rows` rows reaches of its bound. A byte of BF16 weights gives one operation a row, so reading them bounds few
 * rows: operations a second ÷ min(peak, rows × bytes a second of plain reading), the median of the ratios within the turns.
 */
export function ofBound(rows: number, operations: number, turns: Turn[]): number {
  const bound = (turn: Turn) => Math.min(peakOf(turn), rows * turn.read);
  return median(turns.map((turn) => operations / turn.ours / bound(turn)));
}

/**
 * `work` of one call is operations, beside the better of the two peaks, or with `byBytes` bytes, beside plain reading.
 * `x NAME` in the details is how many times faster ours is than that peer: the median of the ratios within the turns.
 */
export function summarizeTurns(id: string, work: number, byBytes: boolean, turns: Turn[]): BenchResult {
  const scale = byBytes ? 1e9 : 1e12;
  const rate = (seconds: number) => work / seconds / scale;
  const limit = (turn: Turn) => (byBytes ? turn.read : peakOf(turn)) / scale;
  const runs = turns.map((turn) => ({ value: rate(turn.ours), reference: limit(turn) }));
  const details: Record<string, number> = {
    'register TFLOP/s': median(turns.map((turn) => turn.registers)) / 1e12,
    'L1 TFLOP/s': median(turns.map((turn) => turn.cached)) / 1e12,
    'read GB/s': median(turns.map((turn) => turn.read)) / 1e9,
  };
  const peers: Record<string, number> = {};
  for (const name of Object.keys(turns[0]!.peers)) {
    peers[name] = median(turns.map((turn) => rate(turn.peers[name]!)));
    details[`x ${name}`] = median(turns.map((turn) => turn.peers[name]! / turn.ours));
  }
  return {
    ...summarize(id, byBytes ? 'GB/s' : 'TFLOP/s', byBytes ? 'read' : 'peak', runs, details),
    peers,
  };
}
