import { performance } from 'node:perf_hooks';
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

export { Counter, Gauge, Histogram, Registry } from 'prom-client';

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

/** A histogram `switchyard_<name>` with upper bounds `buckets`, ascending. */
export function histogram<Label extends string = never>(
  registry: Registry,
  name: string,
  help: string,
  buckets: number[],
  labelNames: readonly Label[] = [],
): Histogram<Label> {
  return new Histogram({ name: prefixed(name), help, buckets, labelNames, registers: [registry] });
}

/** Each call returns the share of time, 0 to 1, that the event loop was busy since the previous call. */
export function createUtilizationMeter(): () => number {
  let last = performance.eventLoopUtilization();
  return () => {
    const now = performance.eventLoopUtilization();
    const { utilization } = performance.eventLoopUtilization(now, last);
    last = now;
    return Number.isFinite(utilization) ? utilization : 0;
  };
}

/** A registry of one service, with the metrics of the process and its event loop. */
export function createRegistry(role: string, name: string): Registry {
  const registry = new Registry();
  registry.setDefaultLabels({ role, name });
  // The default of 10 ms would wake an idle process a hundred times a second.
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: 200 });
  for (const metric of misnamedDefaults) registry.removeSingleMetric(metric);
  const meter = createUtilizationMeter();
  gauge(
    registry,
    'event_loop_utilization',
    'Share of time the event loop was busy since the previous read.',
    [],
    (metric) => metric.set(meter()),
  );
  return registry;
}
