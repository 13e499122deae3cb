import type { Interval } from '../common/trace.js';

/** What is told of a span, by names in words of this system. */
export type SpanDetails = Readonly<Record<string, string | number>>;

/** Something that goes on and is traced. */
export interface Span {
  /** As W3C Trace Context has it. Others make spans below this one by it. */
  readonly traceparent: string;
  /** Begins a span below this one. */
  begin(name: string, details: SpanDetails): Span;
  /** Adds a span below this one that is over. */
  add(name: string, interval: Interval, details: SpanDetails): void;
  /** `failure`: what it ended with, if not well. */
  end(failure?: { code: string; message: string }): void;
}

/** Makes spans, of the traces that are sampled. Whoever is given none traces nothing. */
export interface Tracer {
  /**
   * Begins a span below one of another process, or the first of a trace if `traceparent` is empty or none. Null: the trace is
   * not sampled.
   */
  begin(name: string, traceparent: string, details: SpanDetails): Span | null;
  /** Adds a span that is over below one of another process, which has sampled it. */
  add(name: string, traceparent: string, interval: Interval, details: SpanDetails): void;
}
