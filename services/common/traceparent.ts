import type { Metadata } from '@grpc/grpc-js';

/** W3C Trace Context: version, trace, span, flags. */
export const traceparentPattern = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;
export const traceparentAllowed = 'VERSION-TRACE-SPAN-FLAGS in 2, 32, 16 and 2 hexadecimal digits';

/** The span of a call's client, as its metadata names it; empty: there is none. */
export function traceparentOf(metadata: Metadata): string {
  return String(metadata.get('traceparent')[0] ?? '');
}
