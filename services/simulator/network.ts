import { SwitchyardError } from '../common/errors.js';
import type { StreamCodec } from '../common/protocol.js';
import type { Dialer, DialOptions, Duplex, DuplexHandlers, Listener } from '../runtime/duplex.js';
import type { EventLog } from './event-log.js';
import type { SimulatedProcess } from './process.js';
import type { SeededRandom } from './random.js';
import type { Rates } from './rates.js';
import type { VirtualTime } from './virtual-time.js';

/** The codecs of both ends of a method. */
export interface Method<Request, RequestInput, Response, ResponseInput> {
  name: string;
  client: StreamCodec<RequestInput, Response>;
  server: StreamCodec<ResponseInput, Request>;
}

export interface NetworkOptions {
  time: VirtualTime;
  random: SeededRandom;
  rates: Rates;
  log: EventLog;
}

// biome-ignore lint/suspicious/noExplicitAny: what travels is bytes; each method's codecs know the types.
type AnyEnd = StreamEnd<any, any>;

interface Served {
  process: SimulatedProcess;
  // biome-ignore lint/suspicious/noExplicitAny: as above.
  listener: Listener<any, any>;
  // biome-ignore lint/suspicious/noExplicitAny: as above.
  codec: StreamCodec<any, any>;
}

/** Hosts and what connects them: streams with latency, bandwidth and windows, which break, and paths that are cut. */
export class Network {
  /** By address and method. */
  private readonly served = new Map<string, Served>();
  private readonly connections = new Set<Connection>();
  private readonly cuts = new Map<string, number>();
  private readonly waiting: { from: string; to: string; run: () => void }[] = [];

  constructor(readonly options: NetworkOptions) {}

  listen<Request, RequestInput, Response, ResponseInput>(
    process: SimulatedProcess,
    address: string,
    method: Method<Request, RequestInput, Response, ResponseInput>,
    listener: Listener<Request, ResponseInput>,
  ): void {
    const key = `${address} ${method.name}`;
    const served = { process, listener, codec: method.server };
    this.served.set(key, served);
    process.onDeath(() => {
      if (this.served.get(key) === served) this.served.delete(key);
    });
  }

  /** The server takes no new streams. */
  unlisten(address: string): void {
    for (const key of [...this.served.keys()]) if (key.startsWith(`${address} `)) this.served.delete(key);
  }

  dialer<Request, RequestInput, Response, ResponseInput>(
    process: SimulatedProcess,
    method: Method<Request, RequestInput, Response, ResponseInput>,
  ): Dialer<Response, RequestInput> {
    return (address, options) => {
      const client = new StreamEnd<Response, RequestInput>(process, method.client, address, method.name);
      const connection = new Connection(this, client, options);
      this.connections.add(connection);
      connection.connect(address, () => this.served.get(`${address} ${method.name}`));
      return client;
    };
  }

  /** Two hosts do not hear each other until `heal`. What is on its way waits, as TCP sends it again. */
  cut(a: string, b: string): void {
    this.cuts.set(pathKey(a, b), this.options.time.nowMs);
    for (const connection of this.connections) connection.watch();
  }

  heal(): void {
    this.cuts.clear();
    this.letThrough();
  }

  healPath(a: string, b: string): void {
    this.cuts.delete(pathKey(a, b));
    this.letThrough();
  }

  /** Since when the path is cut; null: it is not. */
  cutSince(a: string, b: string): number | null {
    return this.cuts.get(pathKey(a, b)) ?? null;
  }

  /** Looks at streams whose peer came to stand still. */
  watch(): void {
    for (const connection of this.connections) connection.watch();
  }

  /** One of the connections breaks; false if there is none. */
  breakOne(): boolean {
    const { random, log } = this.options;
    const open = [...this.connections].filter(({ established }) => established);
    if (open.length === 0) return false;
    const connection = random.pick(open);
    log.add('network', `breaks ${connection.name}`);
    connection.break('the connection was reset');
    return true;
  }

  /** Runs after the time of one way between the hosts, once they hear each other. */
  travel(from: string, to: string, run: () => void): void {
    this.options.time.after(this.wayMs(from, to), () => this.whenOpen(from, to, run));
  }

  wayMs(from: string, to: string): number {
    const { random, rates } = this.options;
    return from === to ? rates.loopbackMs : rates.latencyMs + random.exponential(rates.jitterMs);
  }

  /** Runs now, or when the hosts hear each other again. */
  whenOpen(from: string, to: string, run: () => void): void {
    if (this.cutSince(from, to) === null) run();
    else this.waiting.push({ from, to, run });
  }

  private letThrough(): void {
    for (const { from, to, run } of this.waiting.splice(0))
      if (this.cutSince(from, to) === null) this.options.time.after(0, run);
      else this.waiting.push({ from, to, run });
  }

  forget(connection: Connection): void {
    this.connections.delete(connection);
  }

  get open(): number {
    return this.connections.size;
  }
}

function pathKey(a: string, b: string): string {
  return a < b ? `${a} ${b}` : `${b} ${a}`;
}

/** One stream on a connection of its own. */
class Connection {
  established = false;
  private server: AnyEnd | null = null;
  private over = false;
  private readonly forgetDeaths: (() => void)[] = [];

  constructor(
    readonly network: Network,
    private readonly client: AnyEnd,
    private readonly options: DialOptions,
  ) {
    client.attach(this);
    this.forgetDeaths.push(client.process.onDeath(() => this.processDied(client)));
  }

  get name(): string {
    return `${this.client.process.name} → ${this.server?.process.name ?? this.client.peer}`;
  }

  connect(address: string, find: () => Served | undefined): void {
    const { client, network } = this;
    const from = client.process.host;
    const to = address.slice(0, address.lastIndexOf(':'));
    const { rates, time } = network.options;
    time.after(rates.connectMsMax, () => {
      if (!this.established) this.lose(client, `no connection to ${address} within ${rates.connectMsMax} ms`);
    });
    // Three ways: there, back, and there with the first message.
    network.travel(from, to, () =>
      network.travel(to, from, () =>
        network.travel(from, to, () => {
          const served = find();
          if (this.over) return;
          if (served === undefined) {
            network.travel(to, from, () => this.lose(client, `connection to ${address} refused`));
            return;
          }
          this.accept(served, from);
        }),
      ),
    );
  }

  private accept({ process, listener, codec }: Served, from: string): void {
    const { client } = this;
    const peer = `${from}:${client.process.name}`;
    const server: AnyEnd = new StreamEnd(process, codec, peer, client.method, true);
    this.server = server;
    server.attach(this);
    this.established = true;
    this.forgetDeaths.push(process.onDeath(() => this.processDied(server)));
    process.deliver(() => listener(server, this.options.authorization ?? undefined));
    client.open();
    server.open();
    this.watch();
  }

  /** The end that is not this one. */
  other(end: AnyEnd): AnyEnd | null {
    return end === this.client ? this.server : this.client;
  }

  /** Both ends lose it. */
  break(reason: string): void {
    this.lose(this.client, reason);
    if (this.server !== null) this.lose(this.server, reason);
  }

  /** This end has heard that the stream is over; the other does when the news has travelled. */
  lose(end: AnyEnd, reason: string): void {
    end.process.deliver(() => end.fail(new SwitchyardError('LINK_LOST', reason)));
    this.endIfOver();
  }

  private processDied(dead: AnyEnd): void {
    const other = this.other(dead);
    dead.close();
    if (other !== null)
      this.network.travel(dead.process.host, other.process.host, () =>
        this.lose(other, `${dead.process.name} closed the connection`),
      );
    this.endIfOver();
  }

  endIfOver(): void {
    if (this.over || !this.client.closed || !(this.server?.closed ?? true)) return;
    this.over = true;
    for (const forget of this.forgetDeaths) forget();
    this.network.forget(this);
  }

  /** A path that is cut, or a process that stands still, is noticed by an end that waits for signs of life. */
  watch(): void {
    const { rates } = this.network.options;
    this.watchFrom(this.client, this.options.leaseMs ?? rates.silenceMsMax);
    if (this.server !== null) this.watchFrom(this.server, rates.silenceMsMax);
  }

  private watchFrom(end: AnyEnd, silenceMs: number): void {
    const since = this.silentSince(end);
    if (since === null || end.closed) return;
    const { time } = this.network.options;
    time.after(since + silenceMs - time.nowMs, () => {
      if (end.closed || this.silentSince(end) !== since) return;
      this.lose(end, `nothing was heard of ${end.peer} for ${silenceMs} ms`);
    });
  }

  private silentSince(end: AnyEnd): number | null {
    const other = this.other(end)?.process;
    const cut = this.network.cutSince(end.process.host, other?.host ?? '');
    const stopped = other?.state === 'stopped' ? other.stoppedAtMs : null;
    return cut ?? stopped;
  }
}

interface Waiting {
  bytes: Buffer;
  taken: (() => void) | undefined;
}

/** One end of a stream. */
class StreamEnd<In, Out> implements Duplex<In, Out> {
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
