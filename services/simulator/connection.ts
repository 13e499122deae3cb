import { noCertificate } from '../common/certificate.js';
import { SwitchyardError } from '../common/errors.js';
import type { DialOptions } from '../runtime/duplex.js';
import type { Network, Served } from './network.js';
import { type AnyEnd, StreamEnd } from './stream-end.js';

/** One stream on a connection of its own. */
export class Connection {
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
    const authorization = this.options.authorization ?? undefined;
    process.deliver(() => listener(server, { authorization, certificate: noCertificate }));
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
    for (const end of [this.client, this.server]) {
      if (end === null) continue;
      end.process.brokenMs = this.network.options.time.nowMs;
      this.lose(end, reason);
    }
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
