import { isLoopback } from '../common/access.js';
import { asSwitchyardError, invalidArgument, type SwitchyardError } from '../common/errors.js';
import type { UcxEnd, UcxEndInput } from '../common/generated/switchyard/v1/UcxEnd.js';
import type { TransportChoice } from './link.js';
import { keyBytes } from './ucx/key.js';
import { ownNamespaces, wakesNobody } from './ucx/namespaces.js';
import { type Fabric, mayPass, type UcxSource, whyNoUcx } from './ucx/source.js';

/** What the dialing end of a gRPC stream offers in its first message: an end of a UCX channel beside the stream, and its key. */
export interface UcxOffer {
  readonly ucx: UcxEnd | null;
  readonly ucxKey: Uint8Array;
}

/** An end of a channel, as it is made for an offer. */
export interface UcxSide {
  readonly end: UcxEndInput;
  connect(end: UcxEnd): Promise<void>;
  close(reason: SwitchyardError): void;
}

/** Who answers an offer. */
export interface UcxAcceptor {
  /** Null: it has none. */
  ucx: UcxSource | null;
  /** Where it serves. */
  host: string;
  transport: TransportChoice;
  /** As errors name it. */
  name: string;
}

interface Declined {
  readonly side: null;
  /** In words, why all stays on the stream. */
  readonly declined: string;
  /** UCX found no way. */
  readonly unreachable: boolean;
  /** Another offer is worth a try. */
  readonly mayPass: boolean;
}

/** This end of the channel, or why there is none. */
export type UcxAnswer<Side> =
  | { readonly side: Side; readonly declined: null; readonly unreachable: false; readonly mayPass: false }
  | Declined;

function decline(declined: string, why: Partial<Pick<Declined, 'unreachable' | 'mayPass'>> = {}): Declined {
  return { side: null, declined, unreachable: false, mayPass: false, ...why };
}

/**
 * Answers an offer: `open` makes this end, or says why it does not. Declined is what this process has no UCX for, or is told not
 * to use it, UCX that cannot be started, and a peer that it does not reach. Throws INVALID_ARGUMENT for a key of another length and a damaged end.
 */
export async function acceptUcx<Side extends UcxSide>(
  { ucx: end, ucxKey }: UcxOffer,
  { ucx: source, host, transport, name }: UcxAcceptor,
  open: (ucx: Fabric) => Side | string,
): Promise<UcxAnswer<Side>> {
  const apart = end !== null && wakesNobody(ownNamespaces, end);
  const ucx = transport === 'grpc' || source === null ? null : source.fabric(host, apart);
  if (end === null || ucx === null) return decline(whyNoUcx(transport, name));
  if (apart && isLoopback(host))
    return decline(
      `${name} serves on loopback, and the other end is in another network namespace, where UCX would not wake it`,
      { unreachable: true },
    );
  const { byteLength } = ucxKey;
  if (byteLength !== keyBytes) throw invalidArgument('ucx_key', `${byteLength} bytes`, `${keyBytes} bytes`);
  let side: Side | null = null;
  try {
    const opened = open(ucx);
    if (typeof opened === 'string') return decline(opened, { mayPass: true });
    side = opened;
    await side.connect(end);
    return { side, declined: null, unreachable: false, mayPass: false };
  } catch (thrown) {
    const error = asSwitchyardError(thrown);
    side?.close(error);
    if (error.code === 'INVALID_ARGUMENT') throw error;
    const declined = `${name} does not reach the other end by UCX: ${error.message}`;
    return decline(declined, { unreachable: true, mayPass: mayPass(error) });
  }
}
