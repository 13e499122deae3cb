import { asSwitchyardError, type SwitchyardError } from '../common/errors.js';
import type { LinkOfferInput } from '../common/generated/switchyard/v1/LinkOffer.js';
import type { RouterMessageInput } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { UcxEnd } from '../common/generated/switchyard/v1/UcxEnd.js';
import type { WorkerMessage } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { Deferred } from '../common/lifecycle.js';
import { exchangeCodec } from '../common/protocol.js';
import type { Clock } from '../runtime/clock.js';
import type { ArrivedRows } from './port.js';
import type { UcxPort } from './ucx/port.js';
import { type Fabric, type UcxSource, ucxLoss } from './ucx/source.js';

export interface RouterChannelOptions {
  ucx: UcxSource;
  fabric: Fabric;
  /** 16 secret bytes. */
  key: Buffer;
  /** host:port of the worker, for errors. */
  address: string;
  /** Rows of one answer, and of all that may be under way, in bytes. */
  resultBytesMax: number;
  creditBytesMax: number;
  onMessage: (message: WorkerMessage, rows: ArrivedRows, channel: RouterChannel) => void;
  /** Called once, when a channel is lost that was entered. */
  onLost: (error: SwitchyardError) => void;
}

/** The router's end of a UCX channel to which its link may move. */
export class RouterChannel {
  readonly port: UcxPort<RouterMessageInput, WorkerMessage>;
  /** As the worker gets it over gRPC. */
  readonly offer: LinkOfferInput;
  /** The number of this end. */
  readonly number: number;
  /** Settled when the worker has been heard here, or never will be. */
  private readonly heard = new Deferred<void>();
  private failure: SwitchyardError | null = null;
  private entered = false;

  constructor(private readonly options: RouterChannelOptions) {
    const { ucx, fabric, key, resultBytesMax, creditBytesMax, onMessage } = options;
    this.port = ucx.createPort(fabric, {
      codec: exchangeCodec.client,
      key,
      rowBytesMax: resultBytesMax,
      rowBytesInFlightMax: creditBytesMax,
    });
    const { end } = this.port;
    this.offer = { ucx: end, ucxKey: key };
    this.number = Number(end.channel);
    this.heard.promise.catch(() => {});
    this.port
      .receive((message, rows) => onMessage(message, rows, this))
      .catch((error) => this.fail(ucxLoss(asSwitchyardError(error).message)));
  }

  /**
   * Reaches the worker at its end of the channel: `sayHello` sends what it answers here. Resolves with what carries the rows. Rejects with LINK_LOST where that fails, or is not done within
   * `ms` milliseconds; the channel is then of no use.
   */
  async enter(end: UcxEnd, sayHello: () => void, clock: Clock, ms: number): Promise<string> {
    const text = `no welcome from ${this.options.address} within ${ms} ms`;
    const timer = clock.after(ms, () => this.fail(ucxLoss(text)));
    try {
      await Promise.race([this.port.connect(end), this.heard.promise]);
      sayHello();
      await this.heard.promise;
    } finally {
      timer.cancel();
    }
    const lanes = await this.port.transports();
    if (this.failure !== null) throw this.failure;
    this.entered = true;
    return lanes;
  }

  /** The worker's welcome has come here. */
  welcomed(): void {
    this.heard.resolve();
  }

  /** It is gone, at this end or the other. */
  fail(error: SwitchyardError): void {
    if (this.failure !== null) return;
    this.failure = error;
    this.heard.reject(error);
    if (this.entered) this.options.onLost(error);
  }

  /** The way to the worker is made anew for later ones. */
  abandon(): void {
    void this.port.abandon();
  }
}
