import { SwitchyardError } from '../common/errors.js';
import type { StreamCodec } from '../common/protocol.js';
import type { Duplex, DuplexHandlers } from '../runtime/duplex.js';
import type { Connection } from './connection.js';
import type { SimulatedProcess } from './process.js';

// biome-ignore lint/suspicious/noExplicitAny: what travels is bytes; each method's codecs know the types.
export type AnyEnd = StreamEnd<any, any>;

interface Waiting {
  bytes: Buffer;
  taken: (() => void) | undefined;
}

/** One end of a stream. */
export class StreamEnd<In, Out> implements Duplex<In, Out> {
  paused = false;
  closed = false;
  private handlers: DuplexHandlers<In> | null = null;
  private connection: Connection | null = null;
  private opened = false;
  /** Written, and not on its way yet: the window is full. */
  private readonly waiting: Waiting[] = [];
  /** On its way, or at the other end and not taken there. */
  private outstandingBytes = 0;
  private takenBytes = 0;
  private blocked = false;
  private ended = false;
  private endSent = false;
  /** What leaves now is there not before this. */
  private freeAtMs = 0;
  private lastArrivalMs = 0;
  /** What has arrived and was not heard yet. */
  private readonly arrived: { run: () => void; bytes: number }[] = [];

  constructor(
    readonly process: SimulatedProcess,
    private readonly codec: StreamCodec<Out, In>,
    readonly peer: string,
    readonly method: string,
    private readonly accepted = false,
  ) {}

  attach(connection: Connection): void {
    this.connection = connection;
  }

  /** Messages may leave. */
  open(): void {
    this.opened = true;
    this.flush();
  }

  listen(handlers: DuplexHandlers<In>): void {
    this.handlers = handlers;
    this.hear();
  }

  write(message: Out, taken?: () => void): boolean {
    if (this.closed || this.ended) {
      if (taken) this.process.runtime.clock.soon(taken);
      return true;
    }
    // As gRPC does: what serializes has a length, and copies itself once.
    const serialized = this.codec.serialize(message);
    const bytes = Buffer.allocUnsafe(serialized.length);
    serialized.copy(bytes, 0);
    this.waiting.push({ bytes, taken });
    this.flush();
    this.blocked = this.waiting.length > 0;
    return !this.blocked;
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
    this.process.runtime.clock.soon(() => this.hear());
  }

  end(): void {
    this.ended = true;
    this.flush();
  }

  destroy(error?: SwitchyardError): void {
    if (this.closed) return;
    const gone = new SwitchyardError('LINK_LOST', 'the other end is gone');
    if (this.accepted && error === undefined) this.send(0, (other) => other.arriveEnd());
    else this.send(0, (other) => other.fail(this.accepted ? error! : gone));
    this.close();
    this.connection!.endIfOver();
  }

  fail(error: SwitchyardError): void {
    if (this.closed) return;
    const { handlers } = this;
    this.close();
    this.connection!.endIfOver();
    handlers?.fail(error);
  }

  /** Hears and says no more. */
  close(): void {
    this.closed = true;
    this.arrived.length = 0;
    for (const { taken } of this.waiting.splice(0)) if (taken) this.process.runtime.clock.soon(taken);
  }

  private flush(): void {
    const { streamWindowBytes } = this.connection!.network.options.rates;
    while (this.opened && this.waiting.length > 0 && !this.closed) {
      const { bytes, taken } = this.waiting[0]!;
      if (this.outstandingBytes >= streamWindowBytes) return;
      this.waiting.shift();
      this.outstandingBytes += bytes.byteLength;
      this.send(bytes.byteLength, (other) => other.arrive(bytes, this));
      if (taken) this.process.runtime.clock.soon(taken);
    }
    this.drained();
    if (this.opened && this.ended && this.waiting.length === 0 && !this.endSent && !this.closed) {
      this.endSent = true;
      this.send(0, (other) => other.arriveEnd());
      // A call is over when its server has ended it.
      if (this.accepted) this.close();
      this.connection!.endIfOver();
    }
  }

  /** Puts something on its way: it arrives after what left before. */
  private send(bytes: number, run: (other: AnyEnd) => void): void {
    const { network } = this.connection!;
    const { time, rates } = network.options;
    const other = this.connection!.other(this);
    if (other === null) return;
    const [from, to] = [this.process.host, other.process.host];
    this.freeAtMs = Math.max(this.freeAtMs, time.nowMs) + (from === to ? 0 : bytes / rates.bytesPerMs);
    this.lastArrivalMs = Math.max(this.lastArrivalMs, this.freeAtMs + network.wayMs(from, to));
    time.after(this.lastArrivalMs - time.nowMs, () =>
      network.whenOpen(from, to, () => other.process.deliver(() => run(other))),
    );
  }

  private arrive(bytes: Buffer, from: AnyEnd): void {
    if (this.closed) return;
    const run = () => {
      this.connection!.network.options.log.add(
        this.process.name,
        `< ${this.method} ${bytes.byteLength} of ${from.process.name}`,
      );
      this.handlers?.message(this.codec.deserialize(bytes));
    };
    this.arrived.push({ run, bytes: bytes.byteLength });
    this.hear();
  }

  private arriveEnd(): void {
    if (this.closed) return;
    this.arrived.push({ run: () => this.heardEnd(), bytes: 0 });
    this.hear();
  }

  private heardEnd(): void {
    this.handlers?.end();
    if (this.ended) this.close();
    this.connection!.endIfOver();
  }

  /** Lets the handlers have what has arrived. */
  private hear(): void {
    while (!this.paused && !this.closed && this.handlers !== null && this.arrived.length > 0) {
      const { run, bytes } = this.arrived.shift()!;
      run();
      if (bytes > 0) this.taken(bytes);
    }
  }

  /** The other end's window opens again, half of it at a time. */
  private taken(bytes: number): void {
    this.takenBytes += bytes;
    if (this.takenBytes < this.connection!.network.options.rates.streamWindowBytes / 2) return;
    const opened = this.takenBytes;
    this.takenBytes = 0;
    this.send(0, (other) => other.windowOpened(opened));
  }

  private windowOpened(bytes: number): void {
    if (this.closed) return;
    this.outstandingBytes -= bytes;
    this.flush();
  }

  /** What was written is on its way: the writer may go on. */
  private drained(): void {
    if (!this.blocked || this.waiting.length > 0 || this.closed) return;
    this.blocked = false;
    this.process.runtime.clock.soon(() => {
      if (!this.closed) this.handlers?.drain?.();
    });
  }
}
