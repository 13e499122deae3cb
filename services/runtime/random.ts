/** Chance. In production it is the system's, which nobody can foresee: secrets are made of its bytes. */
export interface Random {
  /** At least 0 and below 1. */
  unit(): number;
  bytes(count: number): Buffer;
  /** A name that nobody else has: an RFC 9562 UUID of version 4. */
  uuid(): string;
}
