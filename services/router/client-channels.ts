import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { Logger } from '../common/log.js';
import { ChunkChannel } from '../transport/chunk-channel.js';
import type { TransportChoice } from '../transport/link.js';
import { ucxOrNull } from '../transport/ucx/port.js';

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
  log: Logger;
}

/** Two of the largest chunks that clients send: one on its way while the router takes another. */
const windowBytesMax = 16 * 1024 * 1024;
const windowBytesMin = 64 * 1024;
const keyBytes = 16;

/** The UCX channels of a router's clients. Their windows are part of a fixed sum. */
export class ClientChannels {
  private freeBytes: number;

  constructor(private readonly options: ClientChannelsOptions) {
    this.freeBytes = options.windowBytesMax;
  }

  /**
   * A channel for the client that offers one, or null: chunks then stay on gRPC, because this router has no UCX or is
   * told not to use it, no window is left, or UCX does not reach the client. The channel gives the client its credit
   * once it has heard from it. Throws INVALID_ARGUMENT for a key of another length. `closed` must be called at its end.
   */
  async accept(
    header: ForwardHeader,
    onChange: () => void,
  ): Promise<{ channel: ChunkChannel; closed: () => void } | null> {
    const ucx = this.options.transport === 'grpc' ? null : ucxOrNull(this.options.host);
    if (header.ucx === null || ucx === null) return null;
    const { byteLength } = header.ucxKey;
    if (byteLength !== keyBytes) throw invalidArgument('ucx_key', `${byteLength} bytes`, `${keyBytes} bytes`);
    const windowBytes = this.nextWindow();
    const routingBytes = header.options?.routing === 'GIVEN' ? this.options.routingBytesMax() : 0;
    if (windowBytes < Math.max(windowBytesMin, header.hidden * 2 + routingBytes)) return null;
    this.freeBytes -= windowBytes;
    let open = true;
    const closed = () => {
      if (open) this.freeBytes += windowBytes;
      open = false;
    };
    const channel = new ChunkChannel(ucx, { key: header.ucxKey, windowBytes, onChange });
    try {
      await channel.connect(header.ucx);
    } catch (thrown) {
      const error = asSwitchyardError(thrown);
      channel.close(error);
      closed();
      this.options.log.warn({ event: 'ucx-unreachable', batch: header.batchId, reason: error.message });
      return null;
    }
    channel.opened.then(
      () => channel.grant(),
      () => {},
    );
    return { channel, closed };
  }

  /** A quarter of what is left, so that many batches at once have smaller windows and none takes all. */
  private nextWindow(): number {
    return Math.min(windowBytesMax, 2 * this.options.messageBytesMax, Math.floor(this.freeBytes / 4));
  }
}

/** The error of a batch whose channel is gone. */
export function channelLost(reason: SwitchyardError): SwitchyardError {
  const text = `the UCX channel to the client was lost: ${reason.message}`;
  return new SwitchyardError('LINK_LOST', text, { transport: 'ucx' }, { cause: reason });
}
