import { createHash, createHmac } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import {
  native,
  type Slab,
  type UcxArrivals,
  type UcxChannel,
  type UcxPeers,
} from '../../../native/index.js';
import { isLoopback } from '../../common/access.js';
import { asSwitchyardError, invalidArgument, type SwitchyardError } from '../../common/errors.js';
import type { UcxEnd, UcxEndInput } from '../../common/generated/switchyard/v1/UcxEnd.js';
import { metadataBytesMax } from '../../common/grpc-channel.js';
import type { StreamCodec } from '../../common/protocol.js';
import { nowMicroseconds } from '../../common/trace.js';
import type { ArrivedRows, MessagePort, Outgoing } from '../port.js';
import { keyBytes } from './key.js';
import { ownNamespaces } from './namespaces.js';
import { type Fabric, type UcxSource, ucxLoss } from './source.js';

export interface UcxPortOptions<Out, In> {
  /** How messages without their rows become bytes and back. */
  codec: StreamCodec<Out, In>;
  key: Uint8Array;
  /** The largest rows of one message. */
  rowBytesMax: number;
  /** Rows that may be under way to this end, as its credits allow. */
  rowBytesInFlightMax: number;
  /** Whether those who send hear when their messages have left, or never will. Default: no. */
  reportSends?: boolean;
}

/** How long a link that only TCP carries waits for its stream before it opens without, and how often it looks. */
const streamMsMax = 1000;
const streamMsBetween = 10;
/** Of a channel's secret. */
const sealBytes = 8;
/** Messages without rows, and metadata, beside what credits count. */
const inboxBytesBeside = 16 * 1024 * 1024;

/**
 * UCX for a process that serves at `host`, or for a client of a server there; null if the addon was built without it. Who
 * stays on loopback reaches its peers by shared memory and opens no port: UCX believes whoever speaks its handshake at a
 * port, and what follows can end the process. `apart`: as of a UcxSource.
 */
export function ucxOrNull(
  host: string,
  encrypted: boolean,
  peers: UcxPeers = 'nodes',
  apart = false,
): Fabric | null {
  const { ucx } = native;
  if (ucx === null) return null;
  const beyond = encrypted ? 'encrypted' : 'network';
  const reach = isLoopback(host) ? 'machine' : apart ? (`${beyond}-apart` as const) : beyond;
  return Object.assign(ucx.fabric(reach, peers), { encrypted });
}

/** UCX as the addon has it. `encrypted`: as of a Fabric. */
export const nativeUcx = (encrypted: boolean, peers: UcxPeers = 'nodes'): UcxSource => ({
  fabric: (host, apart) => ucxOrNull(host, encrypted, peers, apart),
  createPort: (fabric, options) => new UcxPort(fabric, options),
});

/** Both directions of a stream of messages over a UCX channel; rows stay in their slabs. */
export class UcxPort<Out, In> implements MessagePort<Out> {
  gathers = false;
  private readonly channel: UcxChannel;
  private readonly address: Buffer;
  /** Of messages that have not left, if the port tells. */
  private readonly sending: Outgoing<Out>['sent'][] = [];
  private closed = false;
  private failure: SwitchyardError | null = null;

  constructor(
    private readonly ucx: Fabric,
    private readonly options: UcxPortOptions<Out, In>,
  ) {
    this.channel = ucx.openChannel({
      ...secretsOf(options.key, ucx.encrypted ?? false),
      messageBytesMax: options.rowBytesMax + metadataBytesMax,
      inboxBytesMax: options.rowBytesInFlightMax + inboxBytesBeside,
      reportSends: options.reportSends ?? false,
    });
    try {
      // Of what the channel was opened on, or of what took its place, and then the channel fails.
      this.address = Buffer.from(ucx.address());
    } catch (error) {
      void this.channel.close(0);
      throw error;
    }
  }

  /** What the peer must know to send to this port. */
  get end(): UcxEndInput {
    const { address } = this;
    return {
      address,
      channel: this.channel.id,
      seal: sealOf(address),
      encrypted: this.encrypted,
      ...ownNamespaces,
    };
  }

  /** Rejects with INVALID_ARGUMENT for an end that is damaged, with LINK_LOST for one that cannot be reached. */
  async connect({ address, channel, seal, encrypted }: UcxEnd): Promise<void> {
    if (encrypted !== this.encrypted) throw ucxLoss(onlyOne, true);
    if (!sealOf(address).equals(seal))
      throw invalidArgument('ucx.seal', Buffer.from(seal).toString('hex'), 'the seal of ucx.address');
    await this.channel.connect(address, channel);
  }

  private get encrypted(): boolean {
    return this.ucx.encrypted ?? false;
  }

  /** The transports that UCX uses towards the peer, for example "mapped sysv posix", or "tls tcp". Waits a while for a stream where there can be one. */
  async transports(): Promise<string> {
    let lanes = await this.channel.transports();
    for (let waited = 0; lanes === 'tcp' && waited < streamMsMax && !this.closed; waited += streamMsBetween) {
      await delay(streamMsBetween);
      lanes = await this.channel.transports();
    }
    this.gathers = lanes.split(' ').includes('mapped');
    return lanes;
  }

  /** Calls `onMessage` for all that arrives, in order, until the port is closed (resolves) or fails (rejects). */
  async receive(onMessage: (message: In, rows: ArrivedRows, metadataBytes: number) => void): Promise<void> {
    while (!this.closed) {
      let arrivals: UcxArrivals;
      try {
        arrivals = await this.channel.receive();
      } catch (error) {
        if (this.closed) return;
        throw this.failure ?? asSwitchyardError(error);
      }
      for (const time of arrivals.sentMicroseconds) this.sending.shift()?.(time);
      for (const [slab, rowBytes, metadata, announced, arrived] of arrivals.messages) {
        if (this.closed) {
          slab.release();
          continue;
        }
        const transfer = { start: announced, end: arrived };
        const rows: ArrivedRows = { kind: 'slab', slab, byteLength: rowBytes, transfer };
        onMessage(this.parse(metadata), rows, metadata.byteLength);
      }
    }
  }

  /** Messages go out at once: what is under way is bounded by the credits of the stream above. */
  send(outgoing: Outgoing<Out>): void {
    const { done, sent } = outgoing;
    const left = this.closed || this.transmit(outgoing);
    const { reportSends = false } = this.options;
    if (reportSends && !left) this.sending.push(sent);
    done();
    if (reportSends && left) sent?.(nowMicroseconds());
  }

  withdraw(): boolean {
    return false;
  }

  /** Ends it for `reason`: after a loss the way to the peer is made anew for later ports. `flush` as for `destroy`. */
  close(reason: SwitchyardError, { flush } = { flush: false }): void {
    void (reason.code === 'LINK_LOST' ? this.abandon() : this.destroy({ flush }));
  }

  /** `flush`: what was sent may still leave. Resolves when no message uses memory any more. */
  async destroy({ flush } = { flush: true }): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await (flush ? this.channel.close() : this.channel.close(0));
    this.tellAllSent();
  }

  /** As `destroy`, of a port that was lost: the way to the peer is made anew for later ones. */
  async abandon(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await this.channel.abandon();
    this.tellAllSent();
  }

  /** Nothing uses memory any more. */
  private tellAllSent(): void {
    for (const sent of this.sending.splice(0)) sent?.(nowMicroseconds());
  }

  /** Whether the message has left already. What cannot be sent ends the channel, and `receive` tells. */
  private transmit({ make, rows }: Outgoing<Out>): boolean {
    try {
      const metadata = this.options.codec.serialize(make());
      if (rows === null) return this.sendMetadata(metadata);
      if (rows.gather === undefined) return this.channel.send(rows.slab, rows.bytes, metadata);
      return this.channel.sendRows(rows.slab, rows.gather.rowBytes, rows.gather.selected, metadata);
    } catch (thrown) {
      this.failure ??= asSwitchyardError(thrown);
      void this.channel.close(0);
      return false;
    }
  }

  private sendMetadata(metadata: Uint8Array): boolean {
    const slab = native.allocateSlab(1, metadata.byteLength);
    try {
      return this.channel.send(slab, 0, metadata);
    } finally {
      slab.release();
    }
  }

  private parse(metadata: Buffer): In {
    try {
      return this.options.codec.deserialize(metadata);
    } catch {
      throw invalidArgument(
        'metadata of a UCX message',
        `${metadata.byteLength} other bytes`,
        'a message of the protocol',
      );
    }
  }
}

const onlyOne =
  'one end encrypts rows that leave its machine and the other does not; allowed: TLS at both, with the same allowPlaintextRows';

/**
 * What UCX gets of a channel's key. Its headers are not encrypted: there a key made of it stands, from which nobody learns the
 * secret.
 */
function secretsOf(key: Uint8Array, encrypted: boolean): { key: Uint8Array; secret?: Uint8Array } {
  if (!encrypted || key.byteLength !== keyBytes) return { key };
  const made = (use: string) => createHmac('sha256', key).update(use).digest();
  return { key: made('header').subarray(0, keyBytes), secret: made('stream') };
}

export function sealOf(address: Uint8Array): Buffer {
  return createHash('sha256').update(address).digest().subarray(0, sealBytes);
}

/** The first `bytes` of a slab, which is released, in memory of their own. */
export async function copiedOut(slab: Slab, bytes: number): Promise<Buffer> {
  // Not of the pool of small Buffers: these rows are the receiver's alone.
  const rows = Buffer.allocUnsafeSlow(bytes);
  try {
    await native.copyOut(slab, 0, rows);
  } finally {
    slab.release();
  }
  return rows;
}
