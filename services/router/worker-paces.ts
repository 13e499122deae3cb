import type { WorkerPace } from '../../native/index.js';
import { LiveSet } from '../common/live.js';
import { MeasuredRate, type Rate, usualRates } from '../placement/rates.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { Link } from '../transport/link.js';

/** How much what was measured before an answer counts after it: about the last ten answers decide. */
const measuredDecay = 0.9;
/** A token batch is late when its worker took so many times as long for all it had from here as its rate says, */
const lateFactor = 3;
/** and this beside, doubled with each attempt: systems pause, and what is sent again is computed twice. */
const lateMsMin = 300;
const checkMs = 50;
/** Workers that differ by less are taken to be equally fast; whoever is slower has more under way, and gets less for that. */
const likeFactor = 2;
/** Of a row, as long as no worker was measured; only what the workers have beside each other counts then. */
const secondsPerRowUnknown = 1e-6;

/** A token batch on its way. */
export interface SentBatch {
  readonly link: Link;
  readonly rows: number;
  readonly sentMs: number;
  readonly attempt: number;
  /** Called when the worker is late, with this answer or another, again and again until it returns true: it is not waited for any more. */
  readonly late: () => boolean;
}

/** What is known of the worker at the end of a link. */
interface Pace {
  rowsOutstanding: number;
  /** Seconds a row of the last answers: those in which the worker did nothing else for this router, and those for which it computed. */
  readonly answering: MeasuredRate;
  readonly computing: MeasuredRate;
  answeredMs: number;
  /** Since when it is late; null: it is not. */
  suspectedMs: number | null;
}

/** How fast workers answer this router and what they have from it: rows of replicated experts are split by that, and who is late is told by it. */
export class WorkerPaces {
  /** Counts the changes of who is suspected. */
  changes = 0;
  private readonly byLink = new WeakMap<Link, Pace>();
  private readonly underWay = new LiveSet<SentBatch>();
  private readonly suspected = new Set<Pace>();
  private timer: Timer | null = null;

  /** A worker that is late is tried again after `leaseMs`: silence for so long would have ended its link. */
  constructor(
    private readonly clock: Clock,
    private readonly leaseMs: number,
  ) {}

  sent(batch: SentBatch): void {
    this.of(batch.link).rowsOutstanding += batch.rows;
    this.underWay.add(batch);
    this.timer ??= this.clock.after(checkMs, () => this.check()).unref();
  }

  /** Takes an answer, however late, for which the worker computed so long. */
  answered(batch: SentBatch, computeSeconds: number): void {
    const pace = this.of(batch.link);
    const now = this.clock.now();
    pace.answering.add((now - Math.max(pace.answeredMs, batch.sentMs)) / 1000, batch.rows);
    pace.computing.add(computeSeconds, batch.rows);
    pace.answeredMs = now;
    this.forget(batch);
    this.clear(pace);
  }

  /** It gets no answer of use. */
  forget(batch: SentBatch): void {
    this.of(batch.link).rowsOutstanding -= batch.rows;
    this.underWay.delete(batch);
  }

  /** Avoids the worker for a while, as long as others have what it has. */
  suspect(link: Link): void {
    const pace = this.of(link);
    if (pace.suspectedMs === null) this.changes += 1;
    pace.suspectedMs = this.clock.now();
    this.suspected.add(pace);
    this.timer ??= this.clock.after(checkMs, () => this.check()).unref();
  }

  isSuspect(link: Link): boolean {
    return (this.byLink.get(link)?.suspectedMs ?? null) !== null;
  }

  /** As the kernels take it; `near`: who is on this router's host, and wins ties: it counts as a row less busy. */
  describe(links: readonly (Link | null)[], near: readonly boolean[]): WorkerPace {
    const paces = links.map((link) => (link === null ? undefined : this.byLink.get(link)));
    const measured = paces.map((pace) => (pace ? secondsPerRowBusy(pace) : null));
    const perRow = Float64Array.from(usualRates(measured, secondsPerRowUnknown, likeFactor));
    const queued = Float64Array.from(paces, (pace, worker) => {
      const rows = (pace?.rowsOutstanding ?? 0) - (near[worker] ? 1 : 0);
      return rows * perRow[worker]!;
    });
    return { secondsQueued: queued, secondsPerRow: perRow };
  }

  private of(link: Link): Pace {
    let pace = this.byLink.get(link);
    if (pace === undefined) {
      pace = {
        rowsOutstanding: 0,
        answering: new MeasuredRate(measuredDecay),
        computing: new MeasuredRate(measuredDecay),
        answeredMs: 0,
        suspectedMs: null,
      };
      this.byLink.set(link, pace);
    }
    return pace;
  }

  private check(): void {
    this.timer = null;
    // What has arrived meanwhile is taken first: this process may have stood still itself.
    this.clock.soon(() => {
      const now = this.clock.now();
      for (const pace of this.suspected) if (now - pace.suspectedMs! > this.leaseMs) this.clear(pace);
      const perRow = this.secondsPerRow();
      const late = new Set(
        this.underWay
          .values()
          .filter((batch) => this.isLate(batch, perRow.get(batch.link)!, now))
          .map(({ link }) => link),
      );
      for (const link of late) this.suspect(link);
      // Who is late with one answers none of what was sent since any sooner.
      for (const batch of this.underWay.values())
        if (late.has(batch.link) && batch.late()) this.underWay.delete(batch);
      if (this.underWay.size + this.suspected.size === 0) return;
      this.timer ??= this.clock.after(checkMs, () => this.check()).unref();
    });
  }

  /** Of those that have rows from here. One that has just started has answered slowly and seldom: it counts as the others. */
  private secondsPerRow(): Map<Link, number> {
    const links = [...new Set(this.underWay.values().map(({ link }) => link))];
    const rates = links.map((link) => this.of(link).answering.rate);
    const usual = usualRates(rates, 0, likeFactor);
    return new Map(links.map((link, index) => [link, usual[index]!]));
  }

  private isLate({ link, sentMs, attempt }: SentBatch, secondsPerRow: number, now: number): boolean {
    const expectedMs = this.of(link).rowsOutstanding * secondsPerRow * 1000;
    return now - sentMs > expectedMs * lateFactor + lateMsMin * 2 ** attempt;
  }

  private clear(pace: Pace): void {
    if (!this.suspected.delete(pace)) return;
    pace.suspectedMs = null;
    this.changes += 1;
  }
}

/**
 * Of a worker that always has rows: what it computes takes no longer, where calls overlap even less, and between answers there is its waiting for rows
 * too, of which one with few has more.
 */
function secondsPerRowBusy({ answering, computing }: Pace): Rate | null {
  const [whole, computed] = [answering.rate, computing.rate];
  if (whole === null) return null;
  const busy = computed!.value > 0 && computed!.value < whole.value ? computed! : whole;
  return { value: Math.max(busy.value, secondsPerRowMin), error: busy.error };
}
/** Answers may come as fast as the clock does not see. */
const secondsPerRowMin = 1e-9;
