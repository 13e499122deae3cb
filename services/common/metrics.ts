import { Counter, collectDefaultMetrics, Gauge, type Metric, Registry } from 'prom-client';
import type { Usage } from '../runtime/runtime.js';
import { version } from './version.js';

export { Counter, Gauge, Registry } from 'prom-client';

/** Gauges of prom-client whose names Prometheus keeps for counters; `promtool check metrics` refuses them. */
const misnamedDefaults = [
  'nodejs_active_handles_total',
  'nodejs_active_requests_total',
  'nodejs_active_resources_total',
];

const prefixed = (name: string) => `switchyard_${name}`;

/**
 * A counter `switchyard_<name>`; by Prometheus convention `name` ends in `_total`. `read`, if given, is called when the
 * metrics are read, for what is counted elsewhere.
 */
export function counter<Label extends string = never>(
  registry: Registry,
  name: string,
  help: string,
  labelNames: readonly Label[] = [],
  read?: (counter: Counter<Label>) => void,
): Counter<Label> {
  const collect = read
    ? function (this: Counter<Label>) {
        read(this);
      }
    : undefined;
  return new Counter({
    name: prefixed(name),
    help,
    labelNames,
    registers: [registry],
    ...(collect ? { collect } : {}),
  });
}

/** A gauge `switchyard_<name>`. `read`, if given, is called when the metrics are read. */
export function gauge<Label extends string = never>(
  registry: Registry,
  name: string,
  help: string,
  labelNames: readonly Label[] = [],
  read?: (gauge: Gauge<Label>) => void,
): Gauge<Label> {
  const collect = read
    ? function (this: Gauge<Label>) {
        read(this);
      }
    : undefined;
  return new Gauge({
    name: prefixed(name),
    help,
    labelNames,
    registers: [registry],
    ...(collect ? { collect } : {}),
  });
}

/** Gives a counter without labels the value that was counted elsewhere. */
export function setTotal(metric: Counter, value: number): void {
  metric.reset();
  metric.inc(value);
}

/** Whether a node has a coordinator. */
export function coordinatorGauge(registry: Registry, connected: () => boolean): void {
  gauge(registry, 'coordinator_connected', '1 while a coordinator leads this node.', [], (metric) =>
    metric.set(connected() ? 1 : 0),
  );
}

/** Slab memory of a process. */
export function slabGauges(
  registry: Registry,
  read: () => { bytesInUse: number; bytesCached: number; bytesLimit: number },
): void {
  gauge(registry, 'slab_bytes', 'Slab memory by state.', ['state'] as const, (metric) => {
    const { bytesInUse, bytesCached } = read();
    metric.set({ state: 'used' }, bytesInUse);
    metric.set({ state: 'cached' }, bytesCached);
  });
  gauge(registry, 'slab_limit_bytes', 'Slab memory that there may be.', [], (metric) =>
    metric.set(read().bytesLimit),
  );
}

/** Counts in plain numbers, which become series when they are read: each chunk is observed several times. */
export class Histogram {
  readonly type = 'histogram';
  readonly aggregator = 'sum';
  private readonly counts: Float64Array;
  private sum = 0;

  constructor(
    readonly name: string,
    readonly help: string,
    private readonly buckets: readonly number[],
  ) {
    this.counts = new Float64Array(buckets.length + 1);
  }

  observe(value: number): void {
    let bucket = 0;
    while (bucket < this.buckets.length && value > this.buckets[bucket]!) bucket += 1;
    this.counts[bucket]! += 1;
    this.sum += value;
  }

  /** As a Registry asks. */
  async get(): Promise<object> {
    const { name, help, type, aggregator } = this;
    let count = 0;
    const values = [...this.buckets, '+Inf'].map((le, bucket) => {
      count += this.counts[bucket]!;
      return { metricName: `${name}_bucket`, labels: { le }, value: count };
    });
    const total = (suffix: string, value: number) => ({ metricName: `${name}_${suffix}`, labels: {}, value });
    return {
      name,
      help,
      type,
      aggregator,
      values: [...values, total('sum', this.sum), total('count', count)],
    };
  }

  reset(): void {
    this.counts.fill(0);
    this.sum = 0;
  }
}

/** A histogram `switchyard_<name>` with upper bounds `buckets`, ascending. */
export function histogram(
  registry: Registry,
  name: string,
  help: string,
  buckets: readonly number[],
): Histogram {
  const made = new Histogram(prefixed(name), help, buckets);
  registry.registerMetric(made as unknown as Metric);
  return made;
}

/** A registry of one service, with the metrics of the process and its event loop. */
export function createRegistry(role: string, name: string, usage: Usage): Registry {
  const registry = new Registry();
  registry.setDefaultLabels({ role, name });
  // The default of 10 ms would wake an idle process a hundred times a second.
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: 200 });
  for (const metric of misnamedDefaults) registry.removeSingleMetric(metric);
  counter(registry, 'event_loop_busy_seconds_total', 'Seconds the event loop was busy.', [], (metric) =>
    setTotal(metric, usage.eventLoopBusySeconds()),
  );
  gauge(registry, 'build_info', 'The version that runs. Always 1.', ['version'] as const).set({ version }, 1);
  return registry;
}
