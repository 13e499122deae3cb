import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import type { SessionBatch } from '../common/generated/switchyard/v1/SessionBatch.js';
import type { SessionRequest } from '../common/generated/switchyard/v1/SessionRequest.js';
import type { SessionResponseInput } from '../common/generated/switchyard/v1/SessionResponse.js';
import type { UcxEnd, UcxEndInput } from '../common/generated/switchyard/v1/UcxEnd.js';
import { sessionCodec } from '../common/protocol.js';
import { chunkCost, routingBytesOf } from '../transport/chunk-size.js';
import type { UcxSide } from '../transport/handshake.js';
import { type ArrivedRows, dropRows } from '../transport/port.js';
import { UcxPort } from '../transport/ucx/port.js';
import type { Fabric } from '../transport/ucx/source.js';
import type { ChannelWindow } from './channel-windows.js';
import { channelGraceMs, channelLost } from './client-channel.js';
import type { SessionWay } from './session-call.js';

export interface SessionChannelOptions {
  /** The secret of the channel, 16 bytes. */
  key: Uint8Array;
  window: ChannelWindow;
  /** Whoever gets the rows owns them, and calls `taken` when they need their room in the window no longer. */
  onMessage: (message: SessionRequest, rows: ArrivedRows, way: SessionWay, taken: () => void) => void;
  /** Called once, with what ends the session. */
  onFailure: (error: SwitchyardError) => void;
}

/** A header on the wire, with names and options. */
const headBytesMax = 1024;

/** The router's end of the UCX channel of a session. */
export class SessionChannel implements UcxSide, SessionWay {
  readonly transport = 'ucx';
  lanes = '';
  /** The client has said hello here. */
  heard = false;
  readonly port: UcxPort<SessionResponseInput, SessionRequest>;
  /** Of batches that are in no chunk yet. */
  private heldBytes = 0;
  private closed = false;
  private lost: NodeJS.Timeout | undefined;

  constructor(
    ucx: Fabric,
    private readonly options: SessionChannelOptions,
  ) {
    const { key, window } = options;
    this.port = new UcxPort(ucx, {
      codec: sessionCodec.server,
      key,
      rowBytesMax: window.bytes,
      rowBytesInFlightMax: window.bytes,
      reportSends: true,
    });
    this.port
      .receive((message, rows, metadataBytes) => this.receive(message, rows, metadataBytes))
      .catch((error) => this.fail(asSwitchyardError(error)));
  }

  get end(): UcxEndInput {
    return this.port.end;
  }

  get windowBytes(): number {
    return this.options.window.bytes;
  }

  connect(end: UcxEnd): Promise<void> {
    return this.port.connect(end);
  }

  /** To be called once the client was heard here. */
  async open(): Promise<void> {
    this.lanes = await this.port.transports();
  }

  /** What was sent may still leave, unless the channel is lost. Idempotent. */
  close(reason: SwitchyardError): void {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.lost);
    this.port.close(reason, { flush: true });
    this.options.window.giveBack();
  }

  private receive(message: SessionRequest, rows: ArrivedRows, metadataBytes: number): void {
    if (this.closed) {
      dropRows(rows);
      return;
    }
    let cost: number;
    try {
      cost = message.batch ? this.costOf(message.batch, rows, metadataBytes) : 0;
    } catch (error) {
      dropRows(rows);
      this.fail(asSwitchyardError(error));
      return;
    }
    this.heldBytes += cost;
    let held = true;
    const taken = () => {
      if (held) this.heldBytes -= cost;
      held = false;
    };
    this.options.onMessage(message, rows, this, taken);
  }

  /** Throws what ends the session. */
  private costOf(
    { number, rows: inside, ...batch }: SessionBatch,
    rows: ArrivedRows,
    metadataBytes: number,
  ): number {
    const routingBytes = routingBytesOf(batch);
    const metadataMax = headBytesMax + routingBytes;
    if (metadataBytes > metadataMax || inside.byteLength > 0) {
      const allowed = `header and routing: ${metadataMax} at most; rows lie beside it`;
      throw invalidArgument(`metadata of batch ${number}`, `${metadataBytes} bytes`, allowed);
    }
    const cost = chunkCost(rows.byteLength, routingBytes);
    if (this.heldBytes + cost > this.windowBytes) {
      const allowed = this.windowBytes - this.heldBytes;
      const text = `batch ${number} costs ${cost} bytes and came over UCX; allowed: ${allowed}, what is left of the window`;
      throw new SwitchyardError('RESOURCE_EXHAUSTED', text, { field: 'batch', value: cost, allowed });
    }
    return cost;
  }

  private fail(error: SwitchyardError): void {
    if (this.closed) return;
    if (error.code !== 'LINK_LOST') {
      this.options.onFailure(error);
      return;
    }
    this.lost ??= setTimeout(() => this.options.onFailure(channelLost(error)), channelGraceMs);
  }
}
