import type { Tracing, TracingOptions } from './open-telemetry.js';

interface TracingConfig extends Pick<TracingOptions, 'name'> {
  otlpEndpoint: string | null;
  traceSampling: number;
}

/** Null: nothing is traced, and nothing of OpenTelemetry is loaded. */
export async function startTracing(
  role: TracingOptions['role'],
  { name, otlpEndpoint: endpoint, traceSampling: sampling }: TracingConfig,
  log: TracingOptions['log'],
): Promise<Tracing | null> {
  if (endpoint === null) return null;
  const { Tracing } = await import('./open-telemetry.js');
  return new Tracing({ role, name, endpoint, sampling, log });
}
