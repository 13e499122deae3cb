import type { StreamCodec } from '../common/protocol.js';
import type { Dialer, Listener } from '../runtime/duplex.js';
import { Connection } from './connection.js';
import type { EventLog } from './event-log.js';
import type { SimulatedProcess } from './process.js';
import type { SeededRandom } from './random.js';
import type { Rates } from './rates.js';
import { StreamEnd } from './stream-end.js';
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

export interface Served {
  process: SimulatedProcess;
  // biome-ignore lint/suspicious/noExplicitAny: what travels is bytes; each method's codecs know the types.
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
  /** When a path that was cut healed last. */
  private readonly healedMs = new Map<string, number>();
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
    for (const path of this.cuts.keys()) this.healedMs.set(path, this.options.time.nowMs);
    this.cuts.clear();
    this.letThrough();
  }

  healPath(a: string, b: string): void {
    this.healedMs.set(pathKey(a, b), this.options.time.nowMs);
    this.cuts.delete(pathKey(a, b));
    this.letThrough();
  }

  /** Since when the path is cut; null: it is not. */
  cutSince(a: string, b: string): number | null {
    return this.cuts.get(pathKey(a, b)) ?? null;
  }

  /** Whether the path was cut at any time since then. */
  wasCut(a: string, b: string, sinceMs: number): boolean {
    return this.cutSince(a, b) !== null || this.healedAt(a, b) >= sinceMs;
  }

  /** When the path was cut last and healed again; 0: it never was. */
  healedAt(a: string, b: string): number {
    return this.healedMs.get(pathKey(a, b)) ?? 0;
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
