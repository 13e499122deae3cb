import type { ArenaStats } from '../../native/index.js';
import { type ExpertMetrics, figuresOf } from '../common/expert-metrics.js';
import { ExpertRows } from '../common/expert-rows.js';
import type { LayerCountsInput } from '../common/generated/switchyard/v1/LayerCounts.js';
import type { LinkTrafficInput } from '../common/generated/switchyard/v1/LinkTraffic.js';
import {
  type Counter,
  coordinatorGauge,
  counter,
  gauge,
  histogram,
  type Registry,
  slabGauges,
} from '../common/metrics.js';
import type { Link, LinkStats, TransportKind } from '../transport/link.js';
import { type RowsByWorker, WorkerLoad } from './balancedness.js';

/** What the gauges read when they are asked for. */
export interface RouterGauges {
  connected: () => boolean;
  batchesLive: () => number;
  budget: () => { used: number; capacity: number; waiting: number };
  links: () => Link[];
  arena: () => ArenaStats;
}

const secondsBuckets = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10];
/** Each chunk makes what came before count this much less: about the last fifty chunks decide. */
const loadDecay = 0.98;

export type RouterMetrics = ReturnType<typeof createRouterMetrics>;

/** A router's metrics in `registry`, and those of each expert. */
export function createRouterMetrics(registry: Registry, experts: ExpertMetrics, gauges: RouterGauges) {
  readGauges(registry, gauges);
  readLinks(registry, gauges.links);
  const rows = new ExpertRows();
  const load = new WorkerLoad();
  readRouted(registry, experts, rows, load);
  const traffic = readTraffic(registry);
  const seconds = (name: string, help: string) =>
    histogram(registry, `${name}_seconds`, help, secondsBuckets);
  return {
    batches: counter(registry, 'batches_total', 'Batches ended, by outcome.', ['outcome'] as const),
    batchSeconds: seconds('batch', 'A batch that ended well, from its header to its summary.'),
    tokens: counter(registry, 'tokens_total', 'Tokens received.'),
    nonFiniteTokens: counter(registry, 'non_finite_tokens_total', 'Tokens received with NaN or infinity.'),
    nonFiniteOutputs: counter(registry, 'non_finite_outputs_total', 'Tokens answered with NaN or infinity.'),
    retries: counter(registry, 'retries_total', 'Token batches sent in the place of one that got no answer.'),
    failedOverRows: counter(
      registry,
      'failed_over_rows_total',
      'Rows of experts in token batches sent again.',
    ),
    droppedRows: counter(registry, 'dropped_rows_total', 'Rows of answers that came too late to be used.'),
    seconds: {
      norm: seconds('norm', 'Normalising a chunk.'),
      gate: seconds('gate', 'Gating a chunk.'),
      group: seconds('group', 'Grouping the rows of a chunk by worker.'),
      exchange: seconds('exchange', 'A token batch, from credit request to answer.'),
      combine: seconds('combine', 'Combining the results of a chunk.'),
    },
    sent: (way: LinkWay, rowBytes: number) => count(traffic, way, 'sent', rowBytes),
    returned: (way: LinkWay, rowBytes: number) => count(traffic, way, 'returned', rowBytes),
    /** Bytes that travelled to each worker and back since the start. */
    *traffic(): Generator<LinkTrafficInput> {
      for (const [worker, ways] of traffic) {
        const total = { sent: 0, returned: 0 };
        for (const [way, { bytes }] of ways) total[way.split(' ')[0] as Direction] += bytes;
        yield { worker, bytesSent: total.sent, bytesReturned: total.returned };
      }
    },
    /** The series of every other worker end. */
    keepWorkers(workers: ReadonlySet<string>): void {
      for (const worker of traffic.keys()) if (!workers.has(worker)) traffic.delete(worker);
    },
    /** Counts a chunk's rows per expert of a layer. */
    routed(layer: number, counts: Uint32Array): void {
      rows.add(layer, counts);
      load.decay(layer, loadDecay);
    },
    /** Counts what workers get of a chunk. */
    got: (layer: number, by: RowsByWorker) => load.add(layer, by),
    /** Rows routed to each expert since the start. */
    routedRows: (): LayerCountsInput[] =>
      [...rows.layers()].map(([layer, sums]) => ({ layer, rows: [...sums] })),
  };
}

type Direction = 'sent' | 'returned';

/** What of a link its traffic is counted by. */
type LinkWay = Pick<Link, 'worker' | 'transport'>;

interface Traffic {
  messages: number;
  bytes: number;
}

/** By worker, and then by direction and transport. */
type LinkTraffic = Map<string, Map<`${Direction} ${TransportKind}`, Traffic>>;

/** Counts what travels on links in plain numbers, which become series when they are read. */
function readTraffic(registry: Registry): LinkTraffic {
  const traffic: LinkTraffic = new Map();
  const labels = ['worker', 'direction', 'transport'] as const;
  const read = (field: keyof Traffic) => (metric: Counter<(typeof labels)[number]>) => {
    metric.reset();
    for (const [worker, ways] of traffic)
      for (const [way, sums] of ways) {
        const [direction, transport] = way.split(' ') as [Direction, TransportKind];
        metric.inc({ worker, direction, transport }, sums[field]);
      }
  };
  counter(registry, 'link_messages_total', 'Token batches and results on a link.', labels, read('messages'));
  counter(registry, 'link_bytes_total', 'Bytes of rows on a link.', labels, read('bytes'));
  return traffic;
}

function count(
  traffic: LinkTraffic,
  { worker, transport }: LinkWay,
  direction: Direction,
  rowBytes: number,
): void {
  const ways = traffic.get(worker) ?? new Map();
  traffic.set(worker, ways);
  const way = `${direction} ${transport}` as const;
  const sums = ways.get(way);
  if (sums === undefined) {
    ways.set(way, { messages: 1, bytes: rowBytes });
    return;
  }
  sums.messages += 1;
  sums.bytes += rowBytes;
}

/** Counts in typed arrays, which become series when they are read. */
function readRouted(registry: Registry, experts: ExpertMetrics, rows: ExpertRows, load: WorkerLoad): void {
  experts.add('counter', 'rows_total', 'Rows routed to an expert.', () => figuresOf(rows.layers()));
  const labels = ['layer'] as const;
  counter(registry, 'routed_rows_total', 'Rows routed to the experts of a layer.', labels, (metric) => {
    metric.reset();
    for (const [layer, sums] of rows.layers())
      metric.inc(
        { layer },
        sums.reduce((total, sum) => total + sum, 0),
      );
  });
  gauge(
    registry,
    'router_balancedness',
    'Mean/max over workers of the rows this router sent of late; 1 is even.',
    labels,
    (metric) => {
      for (const [layer] of rows.layers()) metric.set({ layer }, load.balancedness(layer));
    },
  );
}

function readGauges(registry: Registry, gauges: RouterGauges): void {
  coordinatorGauge(registry, gauges.connected);
  gauge(registry, 'batches_live', 'Batches under way.', [], (metric) => metric.set(gauges.batchesLive()));
  gauge(registry, 'in_flight_bytes', 'Bytes reserved for chunks in flight.', [], (metric) =>
    metric.set(gauges.budget().used),
  );
  gauge(registry, 'in_flight_limit_bytes', 'The byte budget for chunks in flight.', [], (metric) =>
    metric.set(gauges.budget().capacity),
  );
  gauge(registry, 'in_flight_waiting', 'Chunks that wait for the byte budget.', [], (metric) =>
    metric.set(gauges.budget().waiting),
  );
  slabGauges(registry, gauges.arena);
}

function readLinks(registry: Registry, links: () => Link[]): void {
  gauge(
    registry,
    'link_info',
    'An open link: what carries it, and why. Always 1.',
    ['worker', 'transport', 'lanes', 'reason'] as const,
    (metric) => {
      metric.reset();
      for (const { worker, transport, lanes, reason } of links())
        metric.set({ worker, transport, lanes, reason }, 1);
    },
  );
  const read = (name: string, help: string, figure: (stats: LinkStats) => number) =>
    gauge(registry, name, help, ['worker'] as const, (metric) => {
      metric.reset();
      for (const { worker, stats } of links()) metric.set({ worker }, figure(stats));
    });
  read('link_credit_bytes', 'Bytes that may be outstanding on a link.', ({ creditBytes }) => creditBytes);
  read('link_outstanding_bytes', 'Bytes outstanding on a link.', ({ bytesOutstanding }) => bytesOutstanding);
  read('link_waiting', 'Token batches that wait for credit on a link.', ({ waiting }) => waiting);
}
