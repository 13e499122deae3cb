/** Who leads, as the coordinators of a cluster wrote it down. */
export interface LeaseRecord {
  /** A name of the process that leads, which no other bears; empty: it gave the lease up. */
  holder: string;
  /** host:port at which nodes and operators reach it. */
  address: string;
  /** Rises with every process that takes the lease, and never falls. */
  term: number;
  /** Who has seen no renewal for so long may take the lease. */
  leaseMs: number;
}

export interface StoredLease extends LeaseRecord {
  /** Another one after each write. */
  version: string;
}

/**
 * The one record that the coordinators of a cluster share. It orders their writes, and that is all: when a lease is over, each of them tells by its own
 * monotonic clock.
 */
export interface LeaderLease {
  /** Null: nobody has written one. Rejects after `withinMs` at the latest. */
  read(withinMs: number): Promise<StoredLease | null>;
  /**
   * Writes if the record that is there has this version (null: if there is none). Null: another one was there. If it rejects, after `withinMs` at the latest,
   * it may have been written.
   */
  replace(version: string | null, record: LeaseRecord, withinMs: number): Promise<StoredLease | null>;
  close(): void;
}
