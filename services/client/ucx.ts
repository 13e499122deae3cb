import { SwitchyardError } from '../common/errors.js';
import { systemRandom } from '../runtime/system.js';
import type { ChunkChannel } from '../transport/chunk-channel.js';
import type { TransportChoice } from '../transport/link.js';
import { keyBytes } from '../transport/ucx/key.js';
import { type Fabric, ucxLoss } from '../transport/ucx/source.js';
import type { SessionPort, SessionPortEvents } from './session-port.js';

/** How long the way to a router over UCX, or a session, may take to open where another way is left. */
const openMsMax = 5_000;
/** The same where none is: the router may be busy. */
const onlyWayMsMax = 30_000;
/** How long `auto` leaves UCX alone after that. */
const retryMs = 60_000;
/** What a router may have sent of a batch that this client has not taken: four of the largest answers. */
const windowBytes = 32 * 1024 * 1024;

/** This end of a channel to a router at `host` for the chunks of a batch; `key` goes to the router with the channel's end. */
export async function openChunkChannel(
  host: string,
  encrypted: boolean,
  onChange: () => void,
): Promise<{ channel: ChunkChannel; key: Buffer }> {
  const ucx = await loadUcx(host, encrypted);
  const { ChunkChannel } = await import('../transport/chunk-channel.js');
  const key = systemRandom.bytes(keyBytes);
  return { channel: new ChunkChannel(ucx, { key, windowBytes, onChange }), key };
}

/** This end of a channel to a router at `host` for the batches of a session. */
export async function openSessionPort(
  host: string,
  encrypted: boolean,
  events: SessionPortEvents,
): Promise<SessionPort> {
  const ucx = await loadUcx(host, encrypted);
  const { SessionPort } = await import('./session-port.js');
  return new SessionPort(ucx, events);
}

/**
 * UCX for a client of a router at `host`, loaded when a batch first wants it: the SDK works without the addon. Rejects with
 * LINK_LOST and why there is none.
 */
async function loadUcx(host: string, encrypted: boolean): Promise<Fabric> {
  try {
    const { ucxOrNull } = await import('../transport/ucx/port.js');
    const ucx = ucxOrNull(host, encrypted);
    if (ucx === null) throw ucxLoss('the native addon was built without UCX', true);
    return ucx;
  } catch (error) {
    if (error instanceof SwitchyardError) throw error;
    throw ucxLoss(`the native addon cannot be loaded: ${(error as Error).message}`, true);
  }
}

/** The routers that UCX did not reach: `auto` leaves it alone there for a while. */
export class UnreachableByUcx {
  private readonly untilMs = new Map<string, number>();

  add(router: string): void {
    this.untilMs.set(router, performance.now() + retryMs);
  }

  /** It was reached after all. */
  remove(router: string): void {
    this.untilMs.delete(router);
  }

  /** Whether UCX is worth a try. */
  tries(router: string, transport: TransportChoice): boolean {
    if (transport !== 'auto') return transport === 'ucx';
    return performance.now() >= (this.untilMs.get(router) ?? 0);
  }

  retain(routers: ReadonlySet<string>): void {
    for (const router of this.untilMs.keys()) if (!routers.has(router)) this.untilMs.delete(router);
  }
}

/** How long a way may take to open. */
export function openMsOf(othersAreLeft: boolean): number {
  return othersAreLeft ? openMsMax : onlyWayMsMax;
}
