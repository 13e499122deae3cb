import type { DeviceFigures } from '../../native/index.js';
import type { CallCounts } from '../common/call-sizes.js';
import type { DeviceFiguresInput } from '../common/generated/switchyard/v1/DeviceFigures.js';
import type { WorkerReportInput } from '../common/generated/switchyard/v1/WorkerReport.js';
import { groupByLayer } from '../common/layer-experts.js';
import { heartbeatMsOf } from '../common/lease.js';
import type { Runtime } from '../runtime/runtime.js';
import type { Executor } from './executor.js';
import type { ExpertStore } from './store.js';

/** Makes the reports to the coordinator: figures once a second, the experts held as soon as they changed. */
export class WorkerReporter {
  private readonly meter: () => number;
  private readonly figuresMs: number;
  private reportedChanges: number | null = null;
  private reportedAssignment = 0;
  private reportedAt = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly runtime: Runtime,
    private readonly totals: CallCounts,
    private readonly device: () => DeviceFigures | null,
    leaseMs: number,
  ) {
    this.meter = runtime.usage.eventLoopMeter();
    this.figuresMs = heartbeatMsOf(leaseMs);
  }

  /** The next report names the experts held, changed or not. */
  forgetReported(): void {
    this.reportedChanges = null;
  }

  /**
   * Rows and seconds are those since the start of the worker. `assignment`: the version that came last on this stream; 0: none. Null: there is nothing new to say
   * yet.
   */
  report(
    loaded: { executor: Executor; store: ExpertStore } | null,
    assignment: number,
  ): WorkerReportInput | null {
    const changed =
      loaded !== null &&
      (loaded.store.changes !== this.reportedChanges || assignment !== this.reportedAssignment);
    const nowMs = this.runtime.clock.now();
    if (!changed && nowMs - this.reportedAt < this.figuresMs) return null;
    this.reportedAt = nowMs;
    const figures = {
      ...this.totals.report(),
      eventLoopUtilization: this.meter(),
      rssBytes: this.runtime.usage.rssBytes(),
      device: toWire(this.device()),
    };
    if (loaded === null) return figures;
    const { executor, store } = loaded;
    this.reportedChanges = store.changes;
    this.reportedAssignment = assignment;
    return {
      ...figures,
      assignment,
      rowsQueued: executor.rowsQueued,
      bytesInFlight: executor.bytesHeld,
      load: store.progress(),
      readyChanged: changed,
      ready: changed ? groupByLayer(store.ready()) : [],
    };
  }
}

/** Without a utilisation that the driver does not tell. */
function toWire(figures: DeviceFigures | null): DeviceFiguresInput | null {
  if (figures === null) return null;
  const { utilization, ...told } = figures;
  return { ...told, ...(utilization !== null && { utilization }) };
}
