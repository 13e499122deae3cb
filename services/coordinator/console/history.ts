import type { Cluster } from '../cluster.js';
import { linkKeyOf, nodeKey, type Rates, rounded } from './snapshot.js';
import type { LinkRates, Sample } from './wire.js';

/** Seconds of which samples are kept. */
const samplesMax = 600;

/** Counters of one node, by its incarnation: a node that joins again begins anew. */
interface Counted {
  rows: number;
  tokens: number;
  bytes: ReadonlyMap<string, LinkRates>;
}

/** What is known by looking again and again: rates of nodes and links, and how the last minutes were. */
export class History {
  readonly samples: Record<string, Sample> = {};
  rates: Rates = { rows: new Map(), links: new Map() };
  /** By incarnation, at the last look. */
  private counted = new Map<number, Counted>();
  private lookedAtMs: number | null = null;
  private batchesBefore = 0;
  private seconds = 0;

  /** `nowMs`: monotonic; `wallMs`: as clocks show it. */
  look(cluster: Cluster, nowMs: number, wallMs: number): void {
    const passed = this.lookedAtMs === null ? 0 : (nowMs - this.lookedAtMs) / 1000;
    this.lookedAtMs = nowMs;
    const counted = new Map<number, Counted>();
    const rows = new Map<string, number>();
    const links = new Map<string, LinkRates>();
    const sums = { tokens: 0, routed: 0, computed: 0, bytes: 0, batches: 0 };
    for (const member of cluster.members()) {
      if (!member.alive) continue;
      const { hello, incarnation } = member;
      const isRouter = hello.role === 'ROUTER';
      const now: Counted = {
        rows: isRouter ? member.rows : (member.worker?.rowsComputed ?? 0),
        tokens: member.tokens,
        bytes: new Map(
          [...member.traffic].map(([worker, { bytesSent, bytesReturned }]) => {
            return [worker, { sent: bytesSent, returned: bytesReturned }];
          }),
        ),
      };
      const before = this.counted.get(incarnation) ?? now;
      counted.set(incarnation, now);
      sums.batches += member.batches.batchesLive;
      if (passed === 0) continue;
      const perSecond = (count: number) => Math.max(0, count) / passed;
      const rate = perSecond(now.rows - before.rows);
      rows.set(nodeKey(hello.role, hello.name), rate);
      sums[isRouter ? 'routed' : 'computed'] += rate;
      sums.tokens += perSecond(now.tokens - before.tokens);
      for (const [worker, { sent, returned }] of now.bytes) {
        const earlier = before.bytes.get(worker) ?? { sent: 0, returned: 0 };
        const rates = {
          sent: perSecond(sent - earlier.sent),
          returned: perSecond(returned - earlier.returned),
        };
        if (rates.sent + rates.returned === 0) continue;
        links.set(linkKeyOf(hello.name, worker), {
          sent: rounded(rates.sent),
          returned: rounded(rates.returned),
        });
        sums.bytes += rates.sent + rates.returned;
      }
    }
    this.counted = counted;
    this.rates = { rows, links };
    const stands = sums.batches > 0 && this.batchesBefore > 0 && sums.routed + sums.computed === 0;
    this.batchesBefore = sums.batches;
    if (passed === 0) return;
    this.keep({
      at: Math.round(wallMs),
      tokensPerSecond: rounded(sums.tokens),
      rowsPerSecond: rounded(sums.routed),
      bytesPerSecond: rounded(sums.bytes),
      ...evenness(cluster, nowMs),
      batches: sums.batches,
      paused: stands ? 1 : 0,
    });
  }

  private keep(sample: Sample): void {
    this.samples[this.seconds] = sample;
    delete this.samples[this.seconds - samplesMax];
    this.seconds += 1;
  }
}

function evenness(cluster: Cluster, nowMs: number): Pick<Sample, 'balancedness' | 'balancednessMin'> {
  const values = cluster.layerLoads(nowMs).map((layer) => layer.balancedness);
  if (values.length === 0) return { balancedness: null, balancednessMin: null };
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return { balancedness: rounded(mean), balancednessMin: rounded(Math.min(...values)) };
}
