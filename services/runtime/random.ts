/** Chance. In production it is the system's, which nobody can foresee: secrets are made of its bytes. */
export interface Random {
  /** At least 0 and below 1. */
  unit(): number;
  bytes(count: number): Buffer;
}
