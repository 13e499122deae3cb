import type { Copies, PlanInput } from '../services/placement/input.js';
import { usualLimits } from '../services/placement/loading.js';
import { plan } from '../services/placement/plan.js';
import { predict } from '../services/placement/predict.js';
import { HostCluster } from './hosts/cluster.js';
import { whyNotHosts } from './hosts.js';
import { eplb } from './peers/eplb.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';
import { topicChoices } from './topics.js';

/** Experts are small: what is measured is what travels between the hosts. */
const model = { hidden: 1024, ffn: 64, experts: 128, topK: 8, layers: 1, activation: 'swiglu' };
const topics = { experts: model.experts, topK: model.topK, topics: 16, skew: 0.5, noise: 0.15 };
const tokens = 8_192;
/** The plan is made for these, of the same topics, which are not sent. */
const sampleTokens = 1_024;
/** Of the layer: every worker holds as many copies, as EPLB needs it. */
const replicaSlots = 16;
const workers = ['worker-a0', 'worker-a1', 'worker-b0', 'worker-b1'];
const hosts = 2;
const horizonSeconds = 3_600;
const expertBytes = model.hidden * model.ffn * 2 * 3;
const rowsPerSecond = 100_000;
/** Share of the workers' time that the load takes where it is even. */
const busy = 0.5;
const linkBytesPerSecond = 1e9 / 8;
const batch = { chunkTokens: 512, combine: 'partial', feedback: false } as const;

const placements = ['round robin', 'EPLB', 'planned'] as const;
type Figures = Record<
  (typeof placements)[number],
  { bytes: number; imbalance: number; workersPerToken: number }
>;

/**
 * Bytes between two hosts with two workers each, by their interfaces' counters, for tokens of topics that choose experts of their own: with the copies
 * of experts where the planner puts them, beside round robin and EPLB's. None where this machine cannot have hosts.
 */
async function benchTraffic(options: BenchOptions): Promise<BenchResult[]> {
  const obstacle = whyNotHosts();
  if (obstacle !== null) {
    options.log(`left out: ${obstacle}`);
    return [];
  }
  const cluster = await HostCluster.start({
    preset: 'tiny',
    workersPerHost: workers.length / hosts,
    coordinator: { ...model, rebalanceSeconds: 0 },
  });
  try {
    const runs: Figures[] = [];
    for (let run = 0; run < options.runs; run += 1) runs.push(await measureTopics(cluster, run + 1));
    const medianOf = (figure: (run: Figures) => number) => median(runs.map(figure));
    const details = placements.flatMap((name) => [
      [`imbalance ${name}`, medianOf((run) => run[name].imbalance)],
      [`workersPerToken ${name}`, medianOf((run) => run[name].workersPerToken)],
    ]);
    const pairs = runs.map((run) => ({ value: run.planned.bytes, reference: run['round robin'].bytes }));
    const id = 'balance/traffic-2hosts';
    const result = summarize(id, 'bytes a token', 'round robin', pairs, Object.fromEntries(details));
    return [{ ...result, peers: { EPLB: medianOf((run) => run.EPLB.bytes / run['round robin'].bytes) } }];
  } finally {
    await cluster.stop();
  }
}

/** By placement, for topics that the seed gives. */
async function measureTopics(cluster: HostCluster, seed: number): Promise<Figures> {
  const seeded = { ...topics, seed };
  await Promise.all(cluster.hosts.map((host) => host.call('prepareTopics', model.hidden, tokens, seeded)));
  const input = inputOf(topicChoices(seeded, tokens, sampleTokens));
  const shape = { replicas: model.experts + replicaSlots, groups: 1, nodes: 1, gpus: workers.length };
  const targets: Record<keyof Figures, Copies> = {
    'round robin': input.present,
    EPLB: input.layers.map(({ loads }) =>
      eplb(loads, shape).map((holders) => [...new Set(holders)].sort((a, b) => a - b)),
    ),
    planned: plan(input).target,
  };
  const figures: Partial<Figures> = {};
  for (const name of placements) {
    const [layer] = predict(input.workers, input.layers, input.topK, targets[name]);
    const { imbalance, workersPerToken } = layer!;
    figures[name] = { bytes: await measure(cluster, input, targets[name]), imbalance, workersPerToken };
  }
  return figures as Figures;
}

function inputOf(choices: Uint32Array): PlanInput {
  const loads = new Float64Array(model.experts);
  const perSecond = (busy * rowsPerSecond * workers.length) / choices.length;
  for (const expert of choices) loads[expert]! += perSecond;
  return {
    workers: workers.map((name) => ({
      name,
      host: name.at(-2)!,
      memoryBytes: ((model.experts + replicaSlots) / workers.length) * expertBytes,
      rowsPerSecond,
      loadBytesPerSecond: 1e9,
    })),
    layers: [{ layer: 0, expertBytes, loads, choices }],
    topK: model.topK,
    present: [Array.from(loads, (_, expert) => [expert % workers.length])],
    copiesMin: 1,
    replicaSlots,
    limits: usualLimits,
    horizonSeconds,
    crossingSeconds: (2 * 2 * model.hidden) / linkBytesPerSecond,
  };
}

/** Bytes a token that cross the link, both ways, while both hosts send a batch through their own routers. */
async function measure(cluster: HostCluster, input: PlanInput, copies: Copies): Promise<number> {
  const [a, b] = cluster.hosts;
  const target = input.layers.map(({ layer }, index) => ({
    layer,
    workersOf: copies[index]!.map((holders) => holders.map((worker) => workers[worker]!)),
  }));
  await a.call('rebalance', cluster.address, cluster.token, target);
  const before = await a.call('linkBytes');
  await Promise.all([a.call('forward', batch), b.call('forward', batch)]);
  const after = await a.call('linkBytes');
  return (after.sent - before.sent + after.received - before.received) / (2 * tokens);
}

export const trafficGroups = { 'balance/traffic-2hosts': benchTraffic };
