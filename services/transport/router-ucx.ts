import { plainText } from '../common/control-limits.js';
import { asSwitchyardError, type SwitchyardError } from '../common/errors.js';
import type { LinkAnswer } from '../common/generated/switchyard/v1/LinkAnswer.js';
import type { LinkOfferInput } from '../common/generated/switchyard/v1/LinkOffer.js';
import type { WorkerMessage } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { abortable, Deferred, type EndSignal, sleepOn } from '../common/lifecycle.js';
import type { LinkOptions } from './dial.js';
import type { ArrivedRows } from './port.js';
import { RouterChannel } from './router-channel.js';
import { keyBytes } from './ucx/key.js';
import { mayPass, ucxAgainMs, ucxLoss, whyNoUcx } from './ucx/source.js';

/** How the router's end of a link has UCX beside its stream. */
export interface RouterUcxEvents {
  /** Sends an offer over gRPC. */
  sayOffer: (offer: LinkOfferInput) => void;
  sayHello: (channel: RouterChannel) => void;
  onMessage: (message: WorkerMessage, rows: ArrivedRows, channel: RouterChannel) => void;
  /** Called when the channel is lost that the link has moved to. */
  onLost: (error: SwitchyardError) => void;
  /** Aborts with the link. */
  over: EndSignal;
}

/** Why a link stays on gRPC. */
interface Refusal {
  /** In words. */
  readonly reason: string;
  /** The same, of a link for `ucx` alone. */
  readonly error: SwitchyardError;
}

/** A worker's answer to an offer. */
type AboutUcx = Pick<LinkAnswer, 'ucx' | 'ucxDeclined' | 'ucxMayPass'>;

/** A channel to which the link can move, and what carries its rows. */
export interface Entered {
  readonly channel: RouterChannel;
  readonly lanes: string;
}

/** Until the worker has been heard over UCX. */
const enterMsMax = 5_000;
/** Of a link, whatever the worker gives: results that have arrived over UCX must not take all memory. */
export const creditBytesMax = 4 * 1024 ** 3;

/** The way of a link to UCX: in its hello, or later, once what kept it on gRPC may have passed. */
export class RouterUcx {
  refusal: Refusal;
  /** The last that was offered. */
  private channel: RouterChannel | null = null;
  /** Of an offer that the worker has not answered. */
  private answer: Deferred<AboutUcx> | null = null;
  private told = false;

  constructor(
    private readonly options: LinkOptions,
    private readonly events: RouterUcxEvents,
  ) {
    this.refusal = refusalOf(whyNoUcx(options.transport, 'the router'), true);
  }

  /** Makes what is to be offered; null: `refusal` says why there is nothing. */
  open(): LinkOfferInput | null {
    const { transport, ucx, host, address, resultBytesMax, runtime } = this.options;
    const { onMessage, onLost } = this.events;
    try {
      const fabric = transport === 'grpc' || ucx === null ? null : ucx.fabric(host);
      if (fabric === null || ucx === null) return null;
      const key = runtime.random.bytes(keyBytes);
      const limits = { resultBytesMax, creditBytesMax };
      this.channel = new RouterChannel({ ucx, fabric, key, address, ...limits, onMessage, onLost });
      return this.channel.offer;
    } catch (error) {
      return this.giveUp(error);
    }
  }

  /** Takes the worker's answer to what was offered. Null: the link stays on gRPC, and `refusal` says why. */
  async enter({ ucx: end, ucxDeclined, ucxMayPass }: AboutUcx): Promise<Entered | null> {
    const { channel, options } = this;
    if (channel === null) return null;
    if (end === null) {
      this.channel = null;
      void channel.port.destroy();
      const reason = plainText(ucxDeclined) || `worker ${options.worker} declined UCX`;
      this.refusal = refusalOf(reason, !ucxMayPass);
      return null;
    }
    try {
      const sayHello = () => this.events.sayHello(channel);
      return { channel, lanes: await channel.enter(end, sayHello, options.runtime.clock, enterMsMax) };
    } catch (error) {
      return this.giveUp(error);
    }
  }

  /** Offers UCX again, later and later, as long as what keeps the link on gRPC may pass. Null: it does not. Rejects when the link is over. */
  async enterLater(): Promise<Entered | null> {
    const { clock, random } = this.options.runtime;
    const { over, sayOffer } = this.events;
    for (let tries = 0; mayPass(this.refusal.error); tries += 1) {
      await sleepOn(clock, ucxAgainMs(random, tries), over);
      const offer = this.open();
      if (offer === null) continue;
      this.answer = new Deferred();
      sayOffer(offer);
      // However late: the next offer may not come before. One that does not know offers never answers.
      const entered = await this.enter(await abortable(this.answer.promise, over));
      if (entered !== null) return entered;
    }
    return null;
  }

  /** The worker's answer over gRPC to an offer, or its word that a channel is gone. */
  hear(answer: LinkAnswer): void {
    if (answer.channel !== this.channel?.number) return;
    if (this.answer !== null) this.answer.resolve(answer);
    else if (answer.ucx === null) this.channel.fail(ucxLoss(plainText(answer.ucxDeclined)));
    this.answer = null;
  }

  end(reason: SwitchyardError): void {
    this.channel?.fail(reason);
    this.channel?.abandon();
  }

  private giveUp(thrown: unknown): null {
    const error = asSwitchyardError(thrown);
    const loss = error.details.transport === 'ucx' ? error : ucxLoss(error.message, !mayPass(error));
    this.refusal = { reason: loss.message, error: loss };
    this.channel?.abandon();
    this.channel = null;
    const { transport, worker, log } = this.options;
    if (transport === 'auto' && !this.events.over.aborted && !this.told)
      log.warn({ event: 'ucx-unreachable', worker, reason: loss.message, transport: 'grpc' });
    this.told = true;
    return null;
  }
}

function refusalOf(reason: string, lasts: boolean): Refusal {
  return { reason, error: ucxLoss(reason, lasts) };
}
