import type { WorkerReportInput } from '../common/generated/switchyard/v1/WorkerReport.js';
import { createUtilizationMeter } from '../common/metrics.js';
import type { Executor } from './executor.js';
import type { ExpertStore } from './store.js';

/** Makes the reports to the coordinator: figures every time, the experts held when they changed. */
export class WorkerReporter {
  private readonly meter = createUtilizationMeter();
  private reportedChanges: number | null = null;

  constructor(private readonly totals: { readonly rows: number; readonly seconds: number }) {}

  /** The next report names the experts held, changed or not. */
  forgetReported(): void {
    this.reportedChanges = null;
  }

  /** Rows and seconds are those since the start of the worker. */
  report(loaded: { executor: Executor; store: ExpertStore } | null): WorkerReportInput {
    const figures = {
      rowsComputed: this.totals.rows,
      computeSeconds: this.totals.seconds,
      eventLoopUtilization: this.meter(),
      rssBytes: process.memoryUsage.rss(),
    };
    if (loaded === null) return figures;
    const { executor, store } = loaded;
    const readyChanged = store.changes !== this.reportedChanges;
    this.reportedChanges = store.changes;
    return {
      ...figures,
      queues: executor.queued(),
      bytesInFlight: executor.bytesHeld,
      load: store.progress(),
      readyChanged,
      ready: readyChanged ? store.ready() : [],
    };
  }
}
