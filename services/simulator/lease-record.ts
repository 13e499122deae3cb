import type { LeaseRecord, StoredLease } from '../runtime/leader-lease.js';

/** The one record that the coordinators of a cluster share. */
export class SimulatedLeaseRecord {
  /** Every record that was written, the oldest first. */
  readonly written: StoredLease[] = [];

  /** Null: none was written yet. */
  get stored(): StoredLease | null {
    return this.written.at(-1) ?? null;
  }

  /** Null: another version is stored. */
  replace(version: string | null, record: LeaseRecord): StoredLease | null {
    if (version !== (this.stored?.version ?? null)) return null;
    const stored = { ...record, version: String(this.written.length + 1) };
    this.written.push(stored);
    return stored;
  }
}
