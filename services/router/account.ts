import { ExpertRows } from '../common/expert-rows.js';
import type { BatchProgressInput } from '../common/generated/switchyard/v1/BatchProgress.js';
import type { ForwardSummaryInput } from '../common/generated/switchyard/v1/ForwardSummary.js';
import type { Clock } from '../runtime/clock.js';
import { type RowsByWorker, WorkerLoad } from './balancedness.js';
import type { BatchPlan } from './plan.js';

export type Stage = 'norm' | 'gate' | 'group' | 'exchange' | 'compute' | 'queue' | 'combine';

/** One token batch and its answer. */
export interface ExchangeFigures {
  rowsSent: number;
  bytesSent: number;
  bytesReturned: number;
  seconds: number;
  computeSeconds: number;
  queueSeconds: number;
}

/** What a batch did, for its summary. */
export class BatchAccount {
  /** Tokens answered. */
  tokens = 0;
  /** Tokens received with NaN or infinity. */
  nonFiniteTokens = 0;
  /** Tokens answered with NaN or infinity. */
  nonFiniteOutputs = 0;
  /** Rows of answers that came too late to be used. */
  droppedRows = 0;
  private readonly startedMs: number;
  private readonly seconds: Record<Stage, number> = {
    norm: 0,
    gate: 0,
    group: 0,
    exchange: 0,
    compute: 0,
    queue: 0,
    combine: 0,
  };
  private readonly rows = new ExpertRows();
  private readonly first = new WorkerLoad();
  private readonly last = new WorkerLoad();
  private messagesSent = 0;
  private rowsSent = 0;
  private bytesSent = 0;
  private bytesReturned = 0;
  private assignments = 0;
  private retries = 0;
  private failedOverRows = 0;

  constructor(
    private readonly plan: BatchPlan,
    private readonly clock: Clock,
  ) {
    this.startedMs = clock.now();
  }

  get totalSeconds(): number {
    return (this.clock.now() - this.startedMs) / 1000;
  }

  spend(stage: Stage, seconds: number): void {
    this.seconds[stage] += seconds;
  }

  /** Counts the rows of each expert. */
  routed(layer: number, rows: Uint32Array): void {
    this.rows.add(layer, rows);
    this.assignments += rows.reduce((sum, count) => sum + count, 0);
  }

  /** Counts what workers get of the tokens of a chunk. */
  got({ offset, tokens }: { offset: number; tokens: number }, layer: number, load: RowsByWorker): void {
    // A batch of fewer than ten chunks has one chunk in each of its tenths.
    if (offset < this.plan.tokens / 10) this.first.add(layer, load);
    if (offset + tokens > (this.plan.tokens * 9) / 10) this.last.add(layer, load);
  }

  exchanged(figures: ExchangeFigures): void {
    this.messagesSent += 1;
    this.rowsSent += figures.rowsSent;
    this.bytesSent += figures.bytesSent;
    this.bytesReturned += figures.bytesReturned;
    this.spend('exchange', figures.seconds);
    this.spend('compute', figures.computeSeconds);
    this.spend('queue', figures.queueSeconds);
  }

  /** Counts token batches that were sent in the place of one that got no answer, and rows of experts in them. */
  failedOver(tokenBatches: number, rows: number): void {
    this.retries += tokenBatches;
    this.failedOverRows += rows;
  }

  /** As far as it is now. */
  progress(): BatchProgressInput {
    const { batchId, tokens } = this.plan;
    return { batchId, tokens, tokensAnswered: this.tokens, seconds: this.totalSeconds };
  }

  summary(router: string): ForwardSummaryInput {
    const { seconds } = this;
    return {
      batchId: this.plan.batchId,
      router,
      tokens: this.tokens,
      layers: [...this.rows.layers()].map(([layer, rows]) => ({ layer, rows: [...rows] })),
      droppedRows: this.droppedRows,
      retries: this.retries,
      failedOverRows: this.failedOverRows,
      nonFiniteTokens: this.nonFiniteTokens,
      nonFiniteOutputs: this.nonFiniteOutputs,
      timings: {
        totalSeconds: this.totalSeconds,
        normSeconds: seconds.norm,
        gateSeconds: seconds.gate,
        groupSeconds: seconds.group,
        exchangeSeconds: seconds.exchange,
        computeSeconds: seconds.compute,
        queueSeconds: seconds.queue,
        combineSeconds: seconds.combine,
      },
      messagesSent: this.messagesSent,
      rowsSent: this.rowsSent,
      bytesSent: this.bytesSent,
      bytesReturned: this.bytesReturned,
      assignments: this.assignments,
      balancednessFirst: this.first.average(),
      balancednessLast: this.last.average(),
    };
  }
}
