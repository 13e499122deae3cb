import { availableParallelism } from 'node:os';
import { type PresetName, presets } from '../services/model/synthetic.js';
import { BareFfn } from './bare.js';
import type { BatchOutcome, ProcessCpu } from './hosts/calls.js';
import { HostCluster } from './hosts/cluster.js';
import { shapeLink, whyNoHosts } from './hosts/host.js';
import { busySeconds } from './hosts/machine.js';
import { torchPython, torchRatio } from './peers/torch.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';

type Combine = 'exact' | 'partial';

interface Case {
  id: string;
  preset: PresetName;
  /** What each host may send, as tc names it; null: as fast as it goes. */
  rate: string | null;
  /** Of both hosts together. */
  tokens: number;
  chunkTokens: number;
  /** The mode whose ratio the case states; the other one stands beside it in the details. */
  combine: Combine;
  /** Fewer, for PyTorch is slower there. */
  torchTokens: number;
}

const shapes = {
  fine: { tokens: 16_384, chunkTokens: 512, combine: 'partial', torchTokens: 4_096 },
  demo: { tokens: 32_768, chunkTokens: 1_024, combine: 'exact', torchTokens: 8_192 },
} as const;
const rates = { '1gbit': '1gbit', '500mbit': '500mbit', unshaped: null };

export const hostCases: readonly Case[] = (['fine', 'demo'] as const).flatMap((preset) =>
  Object.entries(rates).map(([name, rate]) => ({
    id: `hosts/${preset}-${name}`,
    preset,
    rate,
    ...shapes[preset],
  })),
);

/** Before and after each run, so that a drift of the machine cancels. */
const bareSeconds = 2;
const expertsPerCore = 4;
const cores = 2;
const othersMax = 0.05;
const attemptsMax = 3;

/** Why two hosts cannot be had here; null if they can. */
export function whyNotHosts(): string | null {
  return whyNoHosts() ?? (availableParallelism() < 2 ? 'two hosts need two cores' : null);
}

/** What one batch of both hosts took. */
interface Measured {
  tokensPerSecond: number;
  details: Record<string, number>;
}

interface Compared extends Measured {
  /** Tokens per second of the bare FFN. */
  reference: number;
  /** The largest share of the cores that programs without a part in the benchmark took. */
  others: number;
}

/**
 * Two hosts with one core each, joined by a shaped link: tokens per second of a batch, half of it from a client on each
 * host, against the bare expert FFN on the same two cores. None where this machine cannot have hosts.
 */
export async function benchHosts(test: Case, options: BenchOptions): Promise<BenchResult[]> {
  const obstacle = whyNotHosts();
  if (obstacle !== null) {
    options.log(`left out: ${obstacle}`);
    return [];
  }
  const python = torchPython();
  if (python === null)
    options.log('PyTorch is left out: there is no environment with it in .venv or SWITCHYARD_PEERS');
  const source = { kind: 'synthetic', spec: presets[test.preset].model } as const;
  const bare = await BareFfn.open(source, cores, expertsPerCore);
  const cluster = await HostCluster.start({ preset: test.preset });
  try {
    await shapeLink(cluster.hosts, test.rate);
    await warmUp(cluster, test);
    const other = test.combine === 'exact' ? 'partial' : 'exact';
    const runs: { value: number; reference: number }[] = [];
    const samples: Record<string, number>[] = [];
    const peers: number[] = [];
    for (let run = 0; run < options.runs; run++) {
      const { tokensPerSecond, details, reference } = await undisturbed(options, () =>
        beforeAndAfter(bare, () => measure(cluster, test, test.combine)),
      );
      const beside = await undisturbed(options, () =>
        beforeAndAfter(bare, () => measure(cluster, test, other)),
      );
      runs.push({ value: tokensPerSecond, reference });
      samples.push({
        ...details,
        [`${other} ratio`]: beside.tokensPerSecond / beside.reference,
        [`${other} link MB/s`]: beside.details['link MB/s']!,
      });
      if (python !== null) peers.push(await torchRatio(python, cluster.hosts, test.preset, test.torchTokens));
    }
    const result = summarize(test.id, 'tokens/s', 'bare expert FFN', runs, {
      combine: test.combine,
      ...medians(samples),
    });
    return [peers.length > 0 ? { ...result, peers: { torch: median(peers) } } : result];
  } finally {
    await cluster.stop();
    bare.close();
  }
}

/** The same measurement with the bare FFN on both sides of it. */
async function beforeAndAfter(bare: BareFfn, run: () => Promise<Measured>): Promise<Compared> {
  let others = 0;
  const rate = async () => {
    const [busy, own, started] = [busySeconds(), process.cpuUsage(), performance.now()];
    const tokensPerSecond = await bare.tokensPerSecond(bareSeconds);
    const { user, system } = process.cpuUsage(own);
    const seconds = ((performance.now() - started) / 1000) * cores;
    others = Math.max(others, (busySeconds() - busy - (user + system) / 1e6) / seconds);
    return tokensPerSecond;
  };
  const before = await rate();
  const measured = await run();
  const reference = (before + (await rate())) / 2;
  return { ...measured, reference, others: Math.max(others, measured.details['cpu others']!) };
}

/** Repeats what other programs of this machine disturbed; after a few attempts the least disturbed one counts. */
async function undisturbed(options: BenchOptions, run: () => Promise<Compared>): Promise<Compared> {
  let best = await run();
  for (let attempt = 1; attempt < attemptsMax && best.others > othersMax; attempt++) {
    options.log(`repeated: other programs took ${(best.others * 100).toFixed(0)} % of the cores`);
    const again = await run();
    if (again.others < best.others) best = again;
  }
  return best;
}

async function warmUp({ hosts }: HostCluster, { preset, tokens, chunkTokens, combine }: Case): Promise<void> {
  for (const part of [8, 2]) {
    await Promise.all(hosts.map((host) => host.call('prepare', preset, tokens / part)));
    if (part > 2) await Promise.all(hosts.map((host) => host.call('forward', { chunkTokens, combine })));
  }
}

/** One batch, half of it from each host, from the first client's start to the last client's end. */
async function measure({ hosts }: HostCluster, test: Case, combine: Combine): Promise<Measured> {
  const { chunkTokens, tokens } = test;
  const observe = async () => ({
    cpu: await Promise.all(hosts.map((host) => host.call('cpu'))),
    link: await Promise.all(hosts.map((host) => host.call('linkBytes'))),
    busy: busySeconds(),
  });
  const before = await observe();
  const started = performance.now();
  const clients = await Promise.all(hosts.map((host) => host.call('forward', { chunkTokens, combine })));
  const seconds = (performance.now() - started) / 1000;
  const after = await observe();
  const shares = cpuShares(before.cpu.flat(), after.cpu.flat(), seconds * cores);
  const own = Object.values(shares).reduce((sum, share) => sum + share, 0);
  const sent = after.link.map((link, host) => link.sent - before.link[host]!.sent);
  return {
    tokensPerSecond: tokens / seconds,
    details: {
      'link MB/s': Math.max(...sent) / seconds / 1e6,
      'event loop client': Math.max(...clients.map((client: BatchOutcome) => client.eventLoopUtilization)),
      ...shares,
      // With the kernel's own work for the link, which it does in the name of nobody.
      'cpu others': (after.busy - before.busy) / (seconds * cores) - own,
    },
  };
}

/** CPU seconds by kind of process and thread, divided by those that both cores had. */
function cpuShares(before: ProcessCpu[], after: ProcessCpu[], seconds: number): Record<string, number> {
  const shares: Record<string, number> = {};
  for (const [index, { name, threads }] of after.entries()) {
    for (const [thread, used] of Object.entries(threads)) {
      const key = `cpu ${name.replace(/-.*/, '')} ${thread === 'node' ? 'helpers' : thread}`;
      const share = (used - (before[index]!.threads[thread] ?? 0)) / seconds;
      shares[key] = (shares[key] ?? 0) + share;
    }
  }
  return Object.fromEntries(Object.entries(shares).filter(([, share]) => share >= 0.001));
}

function medians(samples: readonly Record<string, number>[]): Record<string, number> {
  const keys = [...new Set(samples.flatMap((sample) => Object.keys(sample)))];
  return Object.fromEntries(keys.map((key) => [key, median(samples.map((sample) => sample[key] ?? 0))]));
}
