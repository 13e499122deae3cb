import { native } from '../../native/index.js';
import { asSwitchyardError, type SwitchyardError } from '../common/errors.js';
import type { SessionBatchInput } from '../common/generated/switchyard/v1/SessionBatch.js';
import type { SessionHelloInput } from '../common/generated/switchyard/v1/SessionHello.js';
import type { SessionRequestInput } from '../common/generated/switchyard/v1/SessionRequest.js';
import type { SessionResponse } from '../common/generated/switchyard/v1/SessionResponse.js';
import type { UcxEnd } from '../common/generated/switchyard/v1/UcxEnd.js';
import { sessionCodec } from '../common/protocol.js';
import { systemRandom } from '../runtime/system.js';
import { routingBytesOf } from '../transport/chunk-size.js';
import { dropRows, slabOf } from '../transport/port.js';
import { keyBytes } from '../transport/ucx/key.js';
import { copiedOut, UcxPort } from '../transport/ucx/port.js';
import type { Fabric } from '../transport/ucx/source.js';

/** What takes the rows of an answer into memory of their own; it must be called once. */
export type TakeRows = () => Promise<Uint8Array>;

export interface SessionPortEvents {
  onMessage: (message: SessionResponse, rows: TakeRows) => void;
  /** Called once, when the channel is lost. */
  onFailure: (error: SwitchyardError) => void;
}

/** Answers that may be under way to this end: what routers let batches cost is less. */
const answerBytesMax = 32 * 1024 * 1024;
/** Header and lengths on the wire, behind the rows. */
const headBytes = 1024;

/** The client's end of the UCX channel of a session. */
export class SessionPort {
  private readonly key = systemRandom.bytes(keyBytes);
  private readonly port: UcxPort<SessionRequestInput, SessionResponse>;

  constructor(ucx: Fabric, { onMessage, onFailure }: SessionPortEvents) {
    this.port = new UcxPort(ucx, {
      codec: sessionCodec.client,
      key: this.key,
      rowBytesMax: answerBytesMax,
      rowBytesInFlightMax: answerBytesMax,
    });
    this.port
      .receive((message, rows) => {
        if (!message.answer || rows.kind !== 'slab') {
          dropRows(rows);
          onMessage(message, async () => new Uint8Array(0));
        } else onMessage(message, () => copiedOut(rows.slab, rows.byteLength));
      })
      .catch((error) => onFailure(asSwitchyardError(error)));
  }

  get offer(): SessionHelloInput {
    return { ucx: this.port.end, ucxKey: this.key };
  }

  connect(end: UcxEnd): Promise<void> {
    return this.port.connect(end);
  }

  lanes(): Promise<string> {
    return this.port.transports();
  }

  say(message: SessionRequestInput): void {
    this.port.send({ make: () => message, rows: null, done: () => {} });
  }

  /** Copies the rows, which may then be changed, and returns what sends the batch; it must be called once. */
  async prepare(
    batch: Omit<SessionBatchInput, 'number'>,
    rows: Uint8Array,
  ): Promise<(number: number) => void> {
    const bytes = rows.byteLength;
    const slab = await slabOf(rows, native, headBytes + routingBytesOf(batch));
    return (number) => {
      const make = () => ({ batch: { number, ...batch } });
      this.port.send({ make, rows: { slab, bytes }, done: () => slab.release() });
    };
  }

  close(reason: SwitchyardError): void {
    this.port.close(reason, { flush: true });
  }
}
