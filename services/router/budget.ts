import { overLimit } from '../common/errors.js';
import { type EndSignal, onAbort } from '../common/lifecycle.js';
import { LiveSet } from '../common/live.js';

/** Bytes held for one chunk. They only become fewer. */
export class Reservation {
  private held: number;

  constructor(
    private readonly share: BudgetShare,
    bytes: number,
  ) {
    this.held = bytes;
  }

  get bytes(): number {
    return this.held;
  }

  /** Gives back what exceeds `bytes`. */
  shrink(bytes: number): void {
    if (bytes >= this.held) return;
    const freed = this.held - bytes;
    this.held = bytes;
    this.share.giveBack(freed);
  }

  /** Makes `bytes` of it, or all if it holds fewer, a reservation of their own. */
  split(bytes: number): Reservation {
    const part = Math.min(bytes, this.held);
    this.held -= part;
    return new Reservation(this.share, part);
  }

  /** Gives everything back. Idempotent. */
  release(): void {
    this.shrink(0);
  }
}

interface Waiter {
  share: BudgetShare;
  bytes: number;
  grant: () => void;
}

/** One batch's part of a budget. */
export class BudgetShare {
  private heldBytes = 0;

  constructor(private readonly budget: ByteBudget) {}

  get held(): number {
    return this.heldBytes;
  }

  /**
   * Waits in line for `bytes`. Rejects with the signal's reason, and with TOO_LARGE for what the whole
   * budget could never hold.
   */
  reserve(bytes: number, signal: EndSignal): Promise<Reservation> {
    return this.budget.enqueue(this, bytes, signal);
  }

  /** Takes the batch out of the division. What it still holds counts until it is released. */
  close(): void {
    this.budget.leave(this);
  }

  /** For the budget alone. */
  take(bytes: number): void {
    this.heldBytes += bytes;
  }

  /** For reservations alone. */
  giveBack(bytes: number): void {
    this.heldBytes -= bytes;
    this.budget.giveBack(bytes);
  }
}

/**
 * A router's bound on the bytes of all chunks in flight, first come, first served. With n batches open, each
 * may hold 1/(n+1) of it: one part always stays for the next batch, so that batches whose clients stall
 * cannot take everything. A batch that holds nothing may always take one chunk when there is room.
 */
export class ByteBudget {
  private readonly shares = new LiveSet<BudgetShare>();
  private waiters: Waiter[] = [];
  private usedBytes = 0;

  /** `router`: whose budget it is, for errors. */
  constructor(
    readonly capacity: number,
    private readonly router = 'this router',
  ) {}

  get used(): number {
    return this.usedBytes;
  }

  /** As JSON, for operators. */
  state(): { bytes: number; used: number; waiting: number } {
    return { bytes: this.capacity, used: this.usedBytes, waiting: this.waiting };
  }

  get waiting(): number {
    return this.waiters.length;
  }

  /** The most that one batch may hold while it is alone: a chunk's needs must stay below it. */
  get shareBytesMax(): number {
    return Math.floor(this.capacity / 2);
  }

  open(): BudgetShare {
    const share = new BudgetShare(this);
    this.shares.add(share);
    return share;
  }

  /** For shares alone. */
  leave(share: BudgetShare): void {
    if (this.shares.delete(share)) this.grantWaiters();
  }

  /** For shares alone. */
  enqueue(share: BudgetShare, bytes: number, signal: EndSignal): Promise<Reservation> {
    if (bytes > this.capacity) {
      const by = { setting: 'budgetBytes', node: this.router };
      return Promise.reject(overLimit('TOO_LARGE', 'bytes of a chunk', bytes, this.capacity, by));
    }
    return new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(signal.reason);
        return;
      }
      const forget = onAbort(signal, () => {
        this.waiters = this.waiters.filter((other) => other !== waiter);
        reject(signal.reason);
        this.grantWaiters();
      });
      const waiter: Waiter = {
        share,
        bytes,
        grant: () => {
          forget();
          resolve(new Reservation(share, bytes));
        },
      };
      this.waiters.push(waiter);
      this.grantWaiters();
    });
  }

  /** For shares alone. */
  giveBack(bytes: number): void {
    this.usedBytes -= bytes;
    this.grantWaiters();
  }

  /**
   * In the order of arrival. A waiter at the limit of its share is passed over, since only its own batch can
   * help it; one for which there is no room holds up those behind it, so that small chunks cannot starve it.
   */
  private grantWaiters(): void {
    const shareBytes = this.capacity / (this.shares.size + 1);
    let index = 0;
    while (index < this.waiters.length) {
      const waiter = this.waiters[index]!;
      const overShare = waiter.share.held > 0 && waiter.share.held + waiter.bytes > shareBytes;
      if (overShare) {
        index += 1;
        continue;
      }
      if (this.usedBytes + waiter.bytes > this.capacity) return;
      this.waiters.splice(index, 1);
      this.usedBytes += waiter.bytes;
      waiter.share.take(waiter.bytes);
      waiter.grant();
    }
  }
}
