import type { ForwardSummary } from '../common/generated/switchyard/v1/ForwardSummary.js';
import type { Timings } from '../common/generated/switchyard/v1/Timings.js';
import type { TransportKind } from '../transport/link.js';

/** How a batch's rows travelled to and from one router. */
export interface RowsWay {
  transport: TransportKind;
  /** What carried them: "http2", or what UCX chose, for example "mapped posix". */
  lanes: string;
}

/** What one router says of its part, and the way of its rows. */
export type RouterSummary = ForwardSummary & RowsWay;

/** What a batch did, over all routers that took part. */
export interface BatchSummary {
  batchId: string;
  tokens: number;
  /** From the first byte sent to the last answer, as the client saw it. */
  seconds: number;
  /** Rows per expert. */
  layers: { layer: number; rows: number[] }[];
  /** Rows of answers that came too late to be used. */
  droppedRows: number;
  /** Token batches that were sent in the place of one whose worker was lost, late, or refused it, and (token, expert) pairs in them. */
  retries: number;
  failedOverRows: number;
  /** Tokens that held NaN or infinity as they were sent, and as they were answered. */
  nonFiniteTokens: number;
  nonFiniteOutputs: number;
  /** Sums over chunks, layers and routers; `totalSeconds` is the longest router's. */
  timings: Timings;
  messagesSent: number;
  rowsSent: number;
  bytesSent: number;
  bytesReturned: number;
  /** (token, expert) pairs over all layers. */
  assignments: number;
  /** Mean/max of rows over workers, averaged over layers; over routers weighted by their tokens. */
  balancedness: { first: number; last: number };
  /** Tokens per router, by name, and the way of their rows. */
  routers: ({ name: string; tokens: number } & RowsWay)[];
}

const sum = (summaries: readonly ForwardSummary[], field: (summary: ForwardSummary) => number) =>
  summaries.reduce((total, summary) => total + field(summary), 0);

/** One summary of the routers' own. `summaries` must not be empty. */
export function mergeSummaries(summaries: readonly RouterSummary[], seconds: number): BatchSummary {
  const tokens = sum(summaries, (summary) => summary.tokens);
  const weighted = (field: (summary: ForwardSummary) => number) =>
    sum(summaries, (summary) => field(summary) * summary.tokens) / tokens;
  return {
    batchId: summaries[0]!.batchId,
    tokens,
    seconds,
    layers: mergeLayers(summaries),
    droppedRows: sum(summaries, (summary) => summary.droppedRows),
    retries: sum(summaries, (summary) => summary.retries),
    failedOverRows: sum(summaries, (summary) => summary.failedOverRows),
    nonFiniteTokens: sum(summaries, (summary) => summary.nonFiniteTokens),
    nonFiniteOutputs: sum(summaries, (summary) => summary.nonFiniteOutputs),
    timings: mergeTimings(summaries),
    messagesSent: sum(summaries, (summary) => summary.messagesSent),
    rowsSent: sum(summaries, (summary) => summary.rowsSent),
    bytesSent: sum(summaries, (summary) => summary.bytesSent),
    bytesReturned: sum(summaries, (summary) => summary.bytesReturned),
    assignments: sum(summaries, (summary) => summary.assignments),
    balancedness: {
      first: weighted((summary) => summary.balancednessFirst),
      last: weighted((summary) => summary.balancednessLast),
    },
    routers: summaries.map(({ router, tokens, transport, lanes }) => ({
      name: router,
      tokens,
      transport,
      lanes,
    })),
  };
}

function mergeLayers(summaries: readonly ForwardSummary[]): BatchSummary['layers'] {
  const byLayer = new Map<number, number[]>();
  for (const { layer, rows } of summaries.flatMap((summary) => summary.layers)) {
    const total = byLayer.get(layer);
    byLayer.set(layer, total ? total.map((count, expert) => count + (rows[expert] ?? 0)) : [...rows]);
  }
  return [...byLayer].map(([layer, rows]) => ({ layer, rows })).sort((a, b) => a.layer - b.layer);
}

function mergeTimings(summaries: readonly ForwardSummary[]): Timings {
  const of = (field: keyof Timings) => sum(summaries, (summary) => summary.timings?.[field] ?? 0);
  return {
    totalSeconds: Math.max(...summaries.map((summary) => summary.timings?.totalSeconds ?? 0)),
    normSeconds: of('normSeconds'),
    gateSeconds: of('gateSeconds'),
    groupSeconds: of('groupSeconds'),
    exchangeSeconds: of('exchangeSeconds'),
    computeSeconds: of('computeSeconds'),
    queueSeconds: of('queueSeconds'),
    combineSeconds: of('combineSeconds'),
  };
}
