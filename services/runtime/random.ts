/** Chance. In production it is the system's, which nobody can foresee: secrets are made of its bytes. */
export interface Random {
  /** At least 0 and below 1. */
  unit(): number;
  bytes(count: number): Buffer;
}

/** A name that nobody else has: an RFC 9562 UUID of version 4. */
export function uuid(random: Random): string {
  const bytes = random.bytes(16);
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = bytes.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}
