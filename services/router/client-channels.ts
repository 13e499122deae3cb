import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { Logger } from '../common/log.js';
import { acceptUcx, type UcxAcceptor, type UcxAnswer } from '../transport/handshake.js';
import type { ChannelWindows } from './channel-windows.js';
import { ClientChannel, type ClientChannelOptions } from './client-channel.js';

export interface ClientChannelsOptions {
  acceptor: UcxAcceptor;
  windows: ChannelWindows;
  /** Of one token, at all layers. */
  routingBytesMax: () => number;
  log: Logger;
}

/** The UCX channels of a router's batches that are calls of their own. */
export class ClientChannels {
  constructor(private readonly options: ClientChannelsOptions) {}

  /**
   * A channel for the client that offers one, unless this router has no UCX or is told not to use it, no window is left, or
   * UCX does not reach the client: chunks then stay on gRPC. The channel gives the client its credit once it has heard from
   * it. Throws INVALID_ARGUMENT for a key of another length and a damaged end.
   */
  async accept(
    header: ForwardHeader,
    events: Pick<ClientChannelOptions, 'stallMs' | 'onChange' | 'onFailure'>,
  ): Promise<UcxAnswer<ClientChannel>> {
    const { acceptor, windows, routingBytesMax, log } = this.options;
    const answer = await acceptUcx(header, acceptor, (ucx) => {
      const routingBytes = header.options?.routing === 'GIVEN' ? routingBytesMax() : 0;
      const key = header.ucxKey;
      return windows.giveTo(
        ({ bytes: windowBytes, giveBack: onClosed }) =>
          new ClientChannel(ucx, { ...events, key, windowBytes, onClosed }),
        header.hidden * 2 + routingBytes,
      );
    });
    if (answer.unreachable)
      log.warn({ event: 'ucx-unreachable', batch: header.batchId, reason: answer.declined });
    return answer;
  }
}
