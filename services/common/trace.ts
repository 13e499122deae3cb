import { once } from 'node:events';
import { constants, createWriteStream, openSync, type WriteStream } from 'node:fs';
import { SwitchyardError } from './errors.js';
import type { Logger } from './log.js';

/** When something began and ended, in microseconds on the clock of `nowMicroseconds`. */
export interface Interval {
  start: number;
  end: number;
}

const { O_WRONLY, O_CREAT, O_TRUNC, O_NONBLOCK } = constants;

type Details = Record<string, string | number>;

/** About 40 MB of file. What comes after is counted and left out. */
const eventsMax = 200_000;

/** Microseconds on the machine's monotonic clock, which the addon and the traces of all processes here share. */
export function nowMicroseconds(): number {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1e6 + nanoseconds / 1e3;
}

/** The interval of `seconds` that ends now. */
export function until(seconds: number): Interval {
  const end = nowMicroseconds();
  return { start: end - seconds * 1e6, end };
}

/**
 * What a process did and when, as a file in Chrome's trace-event format: Perfetto (ui.perfetto.dev) and chrome://tracing open
 * it. Events are written as they come, so the file of a process that was killed can be read too.
 */
export class Trace {
  private readonly lanes = new Map<string, number>();
  private events = 0;
  private eventsLeftOut = 0;
  private failed = false;

  private constructor(
    private readonly file: WriteStream,
    log: Logger,
  ) {
    file.on('error', (error) => {
      this.failed = true;
      log.warn({ event: 'trace-ended', file: file.path, reason: error.message });
    });
  }

  /** Begins a file anew; null: there is none to write. Throws CONFIG_INVALID if it cannot be written. */
  static open(path: string | null, name: string, log: Logger): Trace | null {
    if (path === null) return null;
    let descriptor: number;
    try {
      // A pipe that nobody reads is an error, and not a process that stands still.
      descriptor = openSync(path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK);
    } catch (error) {
      const text = `trace is "${path}", which cannot be written: ${(error as Error).message}`;
      throw new SwitchyardError('CONFIG_INVALID', text, { key: 'trace', value: path });
    }
    const file = createWriteStream(path, { fd: descriptor });
    const trace = new Trace(file, log);
    file.write('[\n');
    trace.describe('process_name', 0, `${name} (${process.pid})`);
    return trace;
  }

  /** Something a lane did. The intervals of a lane must not overlap. */
  span(lane: string, name: string, { start, end }: Interval, args: Details): void {
    this.add({ ph: 'X', tid: this.laneOf(lane), name, ts: start, dur: Math.max(0, end - start), args });
  }

  /** Something that goes on beside others of its lane. */
  beside(lane: string, name: string, { start, end }: Interval, args: Details): void {
    const event = { cat: lane, id: this.events, tid: this.laneOf(lane), name };
    this.add({ ph: 'b', ...event, ts: start, args });
    this.add({ ph: 'e', ...event, ts: Math.max(start, end) });
  }

  /** Writes what is left. Idempotent. */
  async close(): Promise<void> {
    if (this.failed || this.file.writableEnded) return;
    const metadata = { events: this.events, eventsLeftOut: this.eventsLeftOut };
    this.file.end(
      `${JSON.stringify({ ph: 'M', pid: process.pid, tid: 0, name: 'trace_end', args: metadata })}\n]\n`,
    );
    await once(this.file, 'close').catch(() => {});
  }

  private laneOf(lane: string): number {
    const known = this.lanes.get(lane);
    if (known !== undefined) return known;
    const id = this.lanes.size + 1;
    this.lanes.set(lane, id);
    this.describe('thread_name', id, lane);
    return id;
  }

  private describe(name: string, tid: number, text: string): void {
    this.write({ ph: 'M', name, tid, args: { name: text } });
  }

  private add(event: Record<string, unknown>): void {
    if (this.events >= eventsMax) {
      this.eventsLeftOut += 1;
      return;
    }
    this.events += 1;
    this.write(event);
  }

  private write(event: Record<string, unknown>): void {
    if (!this.failed && !this.file.writableEnded)
      this.file.write(`${JSON.stringify({ pid: process.pid, ...event })},\n`);
  }
}
