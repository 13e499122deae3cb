import { plainText } from '../common/control-limits.js';
import { ExpertRows } from '../common/expert-rows.js';
import type { BatchProgressInput } from '../common/generated/switchyard/v1/BatchProgress.js';
import type { HeldCopiesInput } from '../common/generated/switchyard/v1/HeldCopies.js';
import type { LinkTrafficInput } from '../common/generated/switchyard/v1/LinkTraffic.js';
import type { NodeMessageInput } from '../common/generated/switchyard/v1/NodeMessage.js';
import type { RouterFiguresInput } from '../common/generated/switchyard/v1/RouterFigures.js';
import type { RouterReportInput } from '../common/generated/switchyard/v1/RouterReport.js';
import { groupByLayer } from '../common/layer-experts.js';
import { packUint32 } from '../common/packed.js';
import type { Timer } from '../runtime/clock.js';
import type { Runtime } from '../runtime/runtime.js';
import type { Links } from './links.js';
import type { HeldCopy } from './placement.js';

/** Gate counts wait this long for more, so that a burst of chunks is one message. */
const coalesceMs = 3;
/** Those of a chunk with less than a row for each expert wait so long: a message costs as much as such a chunk. */
const coalesceFewMs = 100;

/** Reading the resident size walks kernel counters of every thread, so it is not done at every heartbeat. */
const rssEveryMs = 1_000;

export interface ReportSources {
  runtime: Runtime;
  bytesInFlight: () => number;
  links: () => Pick<Links, 'changes' | 'describe'>;
  /** Why the router is not ready; empty if it is. */
  notReady: () => string;
  /** The oldest placement that is used, or else the latest. */
  inUse: () => { term: number; epoch: number };
  /** Copies of placements before that may be used. */
  held: () => readonly HeldCopy[];
  batches: () => { live: number; oldest: BatchProgressInput[] };
  /** Of all links since the start. */
  traffic: () => Iterable<LinkTrafficInput>;
}

/**
 * The router's reports: rows chosen per expert soon after they were chosen, and a heartbeat with the
 * process's figures. What the stream cannot take stays here and goes with the next heartbeat.
 */
export class RouterReporter {
  private readonly rows = new ExpertRows();
  /** Those of batches under feedback. */
  private readonly steered = new ExpertRows();
  private readonly meter: () => number;
  private tokens = 0;
  private utilization = 0;
  private rssBytes = 0;
  private rssReadAt = Number.NEGATIVE_INFINITY;
  private timer: Timer | null = null;
  /** When it is due, on the clock's `now`. */
  private dueMs = Number.POSITIVE_INFINITY;
  private reportedLinks: number | null = null;
  /** What `held` told last, as messages have it. */
  private describedHeld: { of: readonly HeldCopy[] | null; copies: HeldCopiesInput[] } = {
    of: null,
    copies: [],
  };
  /** By worker: the bytes that the last heartbeat told of. */
  private readonly reportedBytes = new Map<string, number>();
  private send: ((message: NodeMessageInput) => boolean) | null = null;

  constructor(private readonly sources: ReportSources) {
    this.meter = sources.runtime.usage.eventLoopMeter();
  }

  /** The next heartbeat describes the links and their traffic, changed or not. */
  forgetReported(): void {
    this.reportedLinks = null;
    this.reportedBytes.clear();
  }

  /** `send` returns false if the message was not taken. */
  start(send: (message: NodeMessageInput) => boolean): void {
    this.send = send;
  }

  stop(): void {
    this.send = null;
    this.clearTimer();
  }

  /** Adds tokens that arrived. */
  countTokens(tokens: number): void {
    this.tokens += tokens;
  }

  /** Adds the rows of a chunk per expert of a layer; `steered`: the feedback loop, which waits for them, is to see them. */
  countRows(layer: number, rows: Uint32Array, steered: boolean): void {
    const few = this.rows.add(layer, rows) < rows.length;
    if (!steered) return;
    this.steered.add(layer, rows);
    if (this.send !== null) this.flushWithin(few ? coalesceFewMs : coalesceMs);
  }

  /** The heartbeat: counts are taken out, figures measured anew, links described if they changed. */
  heartbeat(): NodeMessageInput {
    this.utilization = this.meter();
    const { clock, usage } = this.sources.runtime;
    if (clock.now() - this.rssReadAt >= rssEveryMs) {
      this.rssReadAt = clock.now();
      this.rssBytes = usage.rssBytes();
    }
    const links = this.sources.links();
    const linksChanged = links.changes !== this.reportedLinks;
    this.reportedLinks = links.changes;
    const described = { linksChanged, links: linksChanged ? links.describe() : [] };
    const router = { ...this.report(), ...described, figures: this.figures() };
    this.clear();
    return { router };
  }

  /** Says at once what there is to say but the links. */
  flush(): void {
    this.clearTimer();
    if (this.send?.({ router: this.report() })) this.clear();
  }

  private flushWithin(ms: number): void {
    const { clock } = this.sources.runtime;
    const dueMs = clock.now() + ms;
    if (dueMs >= this.dueMs) return;
    this.clearTimer();
    this.dueMs = dueMs;
    this.timer = clock.after(ms, () => this.flush());
  }

  private clearTimer(): void {
    this.timer?.cancel();
    this.timer = null;
    this.dueMs = Number.POSITIVE_INFINITY;
  }

  private report(): RouterReportInput {
    const { term, epoch } = this.sources.inUse();
    return {
      termInUse: term,
      epochInUse: epoch,
      loads: [...this.rows.layers()].map(([layer, rows]) => ({
        layer,
        rows: packRows(rows),
        steered: packSteered(rows, this.steered.of(layer)),
      })),
      tokens: this.tokens,
      bytesInFlight: this.sources.bytesInFlight(),
      eventLoopUtilization: this.utilization,
      rssBytes: this.rssBytes,
      notReady: plainText(this.sources.notReady()),
      held: this.describeHeld(this.sources.held()),
    };
  }

  /** Made once for each list. */
  private describeHeld(held: readonly HeldCopy[]): HeldCopiesInput[] {
    if (this.describedHeld.of === held) return this.describedHeld.copies;
    const byWorker = new Map<string, HeldCopy[]>();
    for (const copy of held) {
      const known = byWorker.get(copy.worker);
      if (known === undefined) byWorker.set(copy.worker, [copy]);
      else known.push(copy);
    }
    const copies = [...byWorker].map(([worker, own]) => ({ worker, experts: groupByLayer(own) }));
    this.describedHeld = { of: held, copies };
    return copies;
  }

  private figures(): RouterFiguresInput {
    const { live, oldest } = this.sources.batches();
    const traffic = [...this.sources.traffic()].filter(({ worker = '', bytesSent, bytesReturned }) => {
      const bytes = Number(bytesSent) + Number(bytesReturned);
      const isNew = bytes !== this.reportedBytes.get(worker);
      this.reportedBytes.set(worker, bytes);
      return isNew;
    });
    return { batchesLive: live, batches: oldest, traffic };
  }

  private clear(): void {
    this.rows.clear();
    this.steered.clear();
    this.tokens = 0;
  }
}

/** While there is no coordinator counts go on; beyond what a message can tell, only their proportions are lost. */
const packRows = (rows: Float64Array) =>
  packUint32(Uint32Array.from(rows, (count) => Math.min(count, 0xffff_ffff)));

/** Empty where all rows are steered, which is usual. */
function packSteered(rows: Float64Array, steered: Float64Array | undefined): Buffer {
  if (steered === undefined) return packRows(new Float64Array(rows.length));
  return rows.every((count, expert) => count === steered[expert]) ? Buffer.alloc(0) : packRows(steered);
}
