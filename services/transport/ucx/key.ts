/** Bytes of the secret that names a channel's rightful sender. */
export const keyBytes = 16;
