import { asSwitchyardError, invalidArgument } from '../common/errors.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { Logger } from '../common/log.js';
import type { TransportChoice } from '../transport/link.js';
import { ucxOrNull, whyNoUcx } from '../transport/ucx/port.js';
import { ClientChannel, type ClientChannelOptions } from './client-channel.js';

export interface ClientChannelsOptions {
  /** Where this router serves. */
  host: string;
  transport: TransportChoice;
  /** The largest rows field of a client's message. */
  messageBytesMax: number;
  /** Of the windows of all channels together. */
  windowBytesMax: number;
  /** Of one token, at all layers. */
  routingBytesMax: () => number;
  batchesMax: number;
  log: Logger;
}

/** Two of the largest chunks that clients send: one on its way while the router takes another. */
const windowBytesMax = 16 * 1024 * 1024;
/** Beside one token: room for more than one short row. */
const windowBytesMin = 64 * 1024;
const keyBytes = 16;

/** A channel for a batch, or in words why it has none. */
export type Accepted = { channel: ClientChannel; declined: null } | { channel: null; declined: string };

/** The UCX channels of a router's clients. Their windows are part of a fixed sum. */
export class ClientChannels {
  private freeBytes: number;
  private open = 0;

  constructor(private readonly options: ClientChannelsOptions) {
    this.freeBytes = options.windowBytesMax;
  }

  /**
   * A channel for the client that offers one, unless this router has no UCX or is told not to use it, no window is left, or
   * UCX does not reach the client: chunks then stay on gRPC. The channel gives the client its credit once it has heard from
   * it. Throws INVALID_ARGUMENT for a key of another length.
   */
  async accept(
    header: ForwardHeader,
    events: Pick<ClientChannelOptions, 'stallMs' | 'onChange' | 'onFailure'>,
  ): Promise<Accepted> {
    const { host, transport, log } = this.options;
    const ucx = transport === 'grpc' ? null : ucxOrNull(host);
    if (header.ucx === null || ucx === null) return decline(whyNoUcx(transport, 'the router'));
    const { byteLength } = header.ucxKey;
    if (byteLength !== keyBytes) throw invalidArgument('ucx_key', `${byteLength} bytes`, `${keyBytes} bytes`);
    const routingBytes = header.options?.routing === 'GIVEN' ? this.options.routingBytesMax() : 0;
    const windowBytes = this.nextWindow(header.hidden * 2 + routingBytes);
    if (windowBytes > this.freeBytes) return decline(this.noWindow());
    const onClosed = this.take(windowBytes);
    const channel = new ClientChannel(ucx, { ...events, key: header.ucxKey, windowBytes, onClosed });
    try {
      await channel.connect(header.ucx);
    } catch (thrown) {
      const error = asSwitchyardError(thrown);
      channel.close(error);
      log.warn({ event: 'ucx-unreachable', batch: header.batchId, reason: error.message });
      return decline(`the router does not reach the client: ${error.message}`);
    }
    return { channel, declined: null };
  }

  /** Returns what gives the window back. */
  private take(windowBytes: number): () => void {
    this.freeBytes -= windowBytes;
    this.open += 1;
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.freeBytes += windowBytes;
      this.open -= 1;
    };
  }

  /**
   * A quarter of what is left beside the smallest windows of all batches that may still come, so that few batches have large
   * windows and as many as there may be have one.
   */
  private nextWindow(tokenBytes: number): number {
    const { batchesMax, messageBytesMax, windowBytesMax: sum } = this.options;
    const min = windowBytesMin + tokenBytes;
    const kept = Math.min((batchesMax - this.open - 1) * min, sum / 2);
    const quarter = Math.floor((this.freeBytes - kept) / 4);
    return Math.max(min, Math.min(windowBytesMax, 2 * messageBytesMax, quarter));
  }

  private noWindow(): string {
    const { windowBytesMax: sum } = this.options;
    return (
      `no window is left: ${this.open} batches share ${sum} bytes, a quarter of the router's budgetBytes, ` +
      `and ${this.freeBytes} of them are free`
    );
  }
}

function decline(declined: string): Accepted {
  return { channel: null, declined };
}
