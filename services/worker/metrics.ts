import type { DeviceFigures } from '../../native/index.js';
import { CallCounts } from '../common/call-sizes.js';
import type { ExpertMetrics } from '../common/expert-metrics.js';
import {
  coordinatorGauge,
  counter,
  gauge,
  type Histogram,
  histogram,
  type Registry,
  setTotal,
  slabGauges,
} from '../common/metrics.js';
import type { ExpertQueue } from './tasks.js';

/** What the executor tells as it computes. */
export interface ExecutorMetrics {
  readonly queueSeconds: Histogram;
  computed(layer: number, rows: number, seconds: number): void;
  readonly totals: CallCounts;
}

export function executorMetrics(registry: Registry): ExecutorMetrics {
  const rowsOf = new Map<number, number>();
  const totals = new CallCounts();
  counter(registry, 'computed_rows_total', 'Rows computed, by layer.', ['layer'] as const, (metric) => {
    metric.reset();
    for (const [layer, rows] of rowsOf) metric.inc({ layer }, rows);
  });
  counter(registry, 'compute_seconds_total', 'Seconds the device spent on rows.', [], (metric) =>
    setTotal(metric, totals.seconds),
  );
  return {
    totals,
    queueSeconds: histogram(
      registry,
      'queue_seconds',
      'Seconds from the arrival of a token batch to the start of its first segment.',
      [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30],
    ),
    computed(layer, rows, seconds) {
      rowsOf.set(layer, (rowsOf.get(layer) ?? 0) + rows);
      totals.add(rows, seconds);
    },
  };
}

/** What is told of each expert here; the series of one that is no longer here end. */
export function workerExpertMetrics(metrics: ExpertMetrics, experts: () => Iterable<ExpertQueue>): void {
  const figures = (value: (queue: ExpertQueue) => number) =>
    function* () {
      for (const queue of experts()) yield [queue.layer, queue.index, value(queue)] as const;
    };
  metrics.add(
    'counter',
    'computed_rows_total',
    'Rows computed.',
    figures(({ rowsComputed }) => rowsComputed),
  );
  metrics.add(
    'counter',
    'compute_seconds_total',
    'Seconds the device spent on rows of an expert.',
    figures(({ computeSeconds }) => computeSeconds),
  );
  metrics.add(
    'gauge',
    'queue_rows',
    'Rows that wait for an expert.',
    figures(({ rows }) => rows),
  );
}

export interface WorkerFigures {
  connected: () => boolean;
  rowsQueued: () => number;
  bytesHeld: () => number;
  loaded: () => { experts: number; bytes: number };
  arena: () => { bytesInUse: number; bytesCached: number; bytesLimit: number };
  /** Null if the device is the host. */
  device: () => DeviceFigures | null;
}

/** Gauges that are read when the metrics are. */
export function workerGauges(registry: Registry, figures: WorkerFigures): void {
  coordinatorGauge(registry, figures.connected);
  gauge(registry, 'queue_rows', 'Rows that wait for an expert.', [], (metric) =>
    metric.set(figures.rowsQueued()),
  );
  gauge(registry, 'in_flight_bytes', 'Bytes of rows and results held.', [], (metric) =>
    metric.set(figures.bytesHeld()),
  );
  gauge(registry, 'experts_loaded', 'Experts ready to compute.', [], (metric) =>
    metric.set(figures.loaded().experts),
  );
  gauge(registry, 'expert_bytes', 'Bytes of the weights loaded.', [], (metric) =>
    metric.set(figures.loaded().bytes),
  );
  slabGauges(registry, figures.arena);
  if (figures.device() !== null) deviceGauges(registry, () => figures.device()!);
}

/** Of a device with memory and streams of its own. */
function deviceGauges(registry: Registry, read: () => DeviceFigures): void {
  counter(
    registry,
    'device_stream_seconds_total',
    'Seconds that a stream of the device was at work.',
    ['stream'] as const,
    (metric) => {
      const { copyInSeconds, computeSeconds, copyOutSeconds } = read();
      metric.reset();
      metric.inc({ stream: 'copy_in' }, copyInSeconds);
      metric.inc({ stream: 'compute' }, computeSeconds);
      metric.inc({ stream: 'copy_out' }, copyOutSeconds);
    },
  );
  gauge(registry, 'device_memory_bytes', 'Memory of the device.', [], (metric) =>
    metric.set(read().memoryTotalBytes),
  );
  gauge(
    registry,
    'device_memory_used_bytes',
    'Memory of the device in use, by all processes.',
    [],
    (metric) => metric.set(read().memoryUsedBytes),
  );
  gauge(
    registry,
    'device_utilization_ratio',
    'Share of the last second in which a kernel ran.',
    [],
    (metric) => {
      const { utilization } = read();
      // A gauge without labels is 0 until it is set, and that would say that the device is idle.
      if (utilization === null) metric.remove();
      else metric.set(utilization);
    },
  );
}
