import { randomBytes } from 'node:crypto';
import { SwitchyardError } from '../common/errors.js';
import type { ChunkChannel } from '../transport/chunk-channel.js';

/** Opens this end of a channel to a router; `key` goes to the router with the channel's end. */
export type OpenChannel = (onChange: () => void) => { channel: ChunkChannel; key: Buffer };

/** What a router may have sent of a batch that this client has not taken: four of the largest answers. */
const windowBytes = 32 * 1024 * 1024;
const keyBytes = 16;

/**
 * UCX for a client of a router at `host`, loaded when a batch first wants it: the SDK works without the addon. Rejects with
 * LINK_LOST and why there is none.
 */
export async function loadUcx(host: string): Promise<OpenChannel> {
  try {
    const { ChunkChannel } = await import('../transport/chunk-channel.js');
    const { ucxOrNull } = await import('../transport/ucx/port.js');
    const ucx = ucxOrNull(host);
    if (ucx === null) throw noWay('the native addon was built without UCX');
    return (onChange) => {
      const key = randomBytes(keyBytes);
      return { channel: new ChunkChannel(ucx, { key, windowBytes, onChange }), key };
    };
  } catch (error) {
    if (error instanceof SwitchyardError) throw error;
    throw noWay(`the native addon cannot be loaded: ${(error as Error).message}`);
  }
}

/** Why chunks cannot travel over UCX. */
export function noWay(reason: string): SwitchyardError {
  return new SwitchyardError('LINK_LOST', `no way over UCX: ${reason}`, { transport: 'ucx' });
}
