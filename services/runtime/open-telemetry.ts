import { setTimeout as delay } from 'node:timers/promises';
import {
  type Attributes,
  type Context,
  type HrTime,
  isSpanContextValid,
  type Span as OtelSpan,
  type Tracer as OtelTracer,
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
  trace,
} from '@opentelemetry/api';
import { parseTraceParent, setGlobalErrorHandler } from '@opentelemetry/core';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { resourceFromAttributes } from '@opentelemetry/resources';
import {
  BasicTracerProvider,
  BatchSpanProcessor,
  ParentBasedSampler,
  TraceIdRatioBasedSampler,
} from '@opentelemetry/sdk-trace-base';
import type { Logger } from '../common/log.js';
import { type Interval, nowMicroseconds } from '../common/trace.js';
import { version } from '../common/version.js';
import type { Span, SpanDetails, Tracer } from './tracer.js';

export interface TracingOptions {
  role: 'coordinator' | 'router' | 'worker';
  name: string;
  /** URL of a receiver of traces by OTLP over HTTP. */
  endpoint: string;
  /** Share of the batches that are sampled, of those whose clients have not decided. */
  sampling: number;
  log: Logger;
}

/** Spans that wait for the receiver; what comes beyond is dropped. */
const waitingMax = 16_384;
/** A receiver may be busy: as long as OpenTelemetry gives it by default. */
const exportMsMax = 10_000;
/** A process that ends waits no longer for it. */
const closeMsMax = 1_000;

/**
 * Sends spans to a receiver by OTLP, in the background, many at once: nobody waits for it, and what it does not take is lost. How often:
 * OpenTelemetry's default of 5 s, or its variable `OTEL_BSP_SCHEDULE_DELAY`.
 */
export class Tracing implements Tracer {
  private readonly provider: BasicTracerProvider;
  private readonly tracer: OtelTracer;
  /** Of the time of day above the machine's monotonic clock, in microseconds. */
  private readonly offset = clockOffset();

  constructor({ role, name, endpoint: url, sampling, log }: TracingOptions) {
    const exporter = new OTLPTraceExporter({ url, timeoutMillis: exportMsMax });
    this.provider = new BasicTracerProvider({
      resource: resourceFromAttributes({
        'service.name': 'switchyard',
        'service.version': version,
        'service.instance.id': name,
        'switchyard.role': role,
      }),
      sampler: new ParentBasedSampler({ root: new TraceIdRatioBasedSampler(sampling) }),
      spanProcessors: [
        new BatchSpanProcessor(exporter, {
          maxQueueSize: waitingMax,
          exportTimeoutMillis: exportMsMax,
        }),
      ],
    });
    this.tracer = this.provider.getTracer('switchyard', version);
    let told = false;
    setGlobalErrorHandler((error) => {
      if (told) return;
      told = true;
      log.warn({ event: 'traces-lost', receiver: url, reason: reasonOf(error) });
    });
  }

  begin(name: string, traceparent: string, details: SpanDetails): Span | null {
    const span = this.start(name, contextOf(traceparent), SpanKind.SERVER, details);
    return span.isRecording() ? new LiveSpan(this, span) : null;
  }

  add(name: string, traceparent: string, interval: Interval, details: SpanDetails): void {
    this.addBelow(contextOf(traceparent), name, interval, details);
  }

  /** Sends what is left, as far as the receiver takes it at once. */
  async close(): Promise<void> {
    const sent = this.provider.shutdown().catch(() => {});
    await Promise.race([sent, delay(closeMsMax, undefined, { ref: false })]);
  }

  start(
    name: string,
    below: Context,
    kind: SpanKind,
    details: SpanDetails,
    at = nowMicroseconds(),
  ): OtelSpan {
    return this.tracer.startSpan(
      name,
      { kind, attributes: attributesOf(details), startTime: this.time(at) },
      below,
    );
  }

  addBelow(below: Context, name: string, { start, end }: Interval, details: SpanDetails): void {
    this.start(name, below, SpanKind.INTERNAL, details, start).end(this.time(end));
  }

  /** The time of day at a moment on the machine's monotonic clock. */
  time(microseconds: number): HrTime {
    const sinceEpoch = microseconds + this.offset;
    const seconds = Math.floor(sinceEpoch / 1e6);
    return [seconds, Math.round((sinceEpoch - seconds * 1e6) * 1e3)];
  }
}

/** A process that stands still between the two clocks sees too little: the most of some looks is right. */
function clockOffset(): number {
  const looks = Array.from({ length: 5 }, () => performance.now() * 1e3 - nowMicroseconds());
  return performance.timeOrigin * 1e3 + Math.max(...looks);
}

class LiveSpan implements Span {
  readonly traceparent: string;
  private readonly context: Context;

  constructor(
    private readonly tracing: Tracing,
    private readonly span: OtelSpan,
  ) {
    const { traceId, spanId } = span.spanContext();
    this.traceparent = `00-${traceId}-${spanId}-01`;
    this.context = trace.setSpan(ROOT_CONTEXT, span);
  }

  begin(name: string, details: SpanDetails): Span {
    return new LiveSpan(this.tracing, this.tracing.start(name, this.context, SpanKind.INTERNAL, details));
  }

  add(name: string, interval: Interval, details: SpanDetails): void {
    this.tracing.addBelow(this.context, name, interval, details);
  }

  end(failure?: { code: string; message: string }): void {
    if (failure) {
      this.span.setStatus({ code: SpanStatusCode.ERROR, message: failure.message });
      this.span.setAttribute('error.type', failure.code);
    }
    this.span.end(this.tracing.time(nowMicroseconds()));
  }
}

/** What is not a traceparent counts as none, as W3C Trace Context says. */
function contextOf(traceparent: string): Context {
  const parent = traceparent === '' ? null : parseTraceParent(traceparent);
  if (parent === null || !isSpanContextValid(parent)) return ROOT_CONTEXT;
  return trace.setSpanContext(ROOT_CONTEXT, { ...parent, isRemote: true });
}

function attributesOf(details: SpanDetails): Attributes {
  return Object.fromEntries(Object.entries(details).map(([name, value]) => [`switchyard.${name}`, value]));
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
