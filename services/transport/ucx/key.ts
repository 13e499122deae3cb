import { randomBytes } from 'node:crypto';

/** Bytes of the secret that names a channel's rightful sender. */
export const keyBytes = 16;

export function randomKey(): Buffer {
  return randomBytes(keyBytes);
}
