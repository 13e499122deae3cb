import { asSwitchyardError, type SwitchyardError } from '../common/errors.js';
import type { RouterMessage } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { UcxEnd, UcxEndInput } from '../common/generated/switchyard/v1/UcxEnd.js';
import type { WorkerMessageInput } from '../common/generated/switchyard/v1/WorkerMessage.js';
import type { AnswerWay } from './answers.js';
import type { UcxSide } from './handshake.js';
import type { ArrivedRows } from './port.js';
import type { UcxPort } from './ucx/port.js';

export interface WorkerChannelEvents {
  onMessage: (
    channel: WorkerChannel,
    message: RouterMessage,
    rows: ArrivedRows,
    metadataBytes: number,
  ) => void;
  /** Called once, when the channel is lost. */
  onFailure: (channel: WorkerChannel, error: SwitchyardError) => void;
}

/** The worker's end of a UCX channel that a router has offered beside its link. */
export class WorkerChannel implements UcxSide, AnswerWay {
  lastExchange = 0;
  /** The router has said hello here. */
  heard = false;

  constructor(
    readonly port: UcxPort<WorkerMessageInput, RouterMessage>,
    /** The router's channel. */
    readonly number: number,
    { onMessage, onFailure }: WorkerChannelEvents,
  ) {
    port
      .receive((message, rows, metadataBytes) => onMessage(this, message, rows, metadataBytes))
      .catch((error) => onFailure(this, asSwitchyardError(error)));
  }

  /** Whether token batches have come here: the router needs it from then on. */
  get used(): boolean {
    return this.lastExchange > 0;
  }

  get end(): UcxEndInput {
    return this.port.end;
  }

  connect(end: UcxEnd): Promise<void> {
    return this.port.connect(end);
  }

  close(reason: SwitchyardError): void {
    this.port.close(reason);
  }

  abandon(): void {
    void this.port.abandon();
  }
}
