import { measureLoad } from '../services/cli/measure-load.js';
import { planInput } from '../services/cli/plan-input.js';
import { syntheticRows } from '../services/cli/synthetic-rows.js';
import type { SwitchyardClient } from '../services/client/index.js';
import type { NodeDescription } from '../services/common/generated/switchyard/v1/NodeDescription.js';
import { sleep } from '../services/common/lifecycle.js';
import { presets } from '../services/model/synthetic.js';
import type { PlanInput } from '../services/placement/input.js';
import { plan } from '../services/placement/plan.js';
import { predict } from '../services/placement/predict.js';
import { ChaosCluster } from './chaos/cluster.js';
import { ChunkLoad, type Interval } from './chunk-load.js';
import { mark, rebalance } from './operator.js';
import { type BenchOptions, type BenchResult, median, summarize } from './report.js';

/** Experts as those of `demo`, of one layer: they are what takes time, and there are enough of them to move. */
const preset = 'demo';
const shape = { layers: 1, experts: 32 };
const chunkTokens = 512;
/** One core each. */
const workers = 2;
const calmMs = 8_000;
const warmMs = 5_000;
const readyMsMax = 120_000;
const pollMs = 50;
/** Of the load, before it is balanced. */
const uneven = 0.7;
const plans = { copies: 1, replicaSlots: 4, horizon: 3_600 };

/** A worker is drained and ends under load: tokens a second meanwhile, beside what the others could do at best. */
async function benchDrain(options: BenchOptions): Promise<BenchResult[]> {
  return withLoad(presets[preset].skew, async (cluster, client, load) => {
    const runs: { value: number; reference: number }[] = [];
    const seconds: number[] = [];
    const drained = cluster.workers[0]!;
    for (let run = 0; run < options.runs; run += 1) {
      const before = await load.during(() => sleep(calmMs));
      const meanwhile = await load.during(async () => {
        await mark(cluster.address, null, drained, 'DRAINED');
        await untilFree(client, drained);
        cluster.signal(drained, 'SIGTERM');
        await cluster.ended(drained);
      });
      seconds.push(meanwhile.seconds);
      const share = (workers - 1) / workers;
      runs.push({ value: meanwhile.tokensPerSecond, reference: share * before.tokensPerSecond });
      options.log(describe('before', before));
      options.log(describe('meanwhile', meanwhile));
      cluster.launch(drained);
      await mark(cluster.address, null, drained, 'NO_MARK');
      await cluster.untilWhole(readyMsMax);
      await untilJoined(client, drained);
      await rebalance(client, cluster.address, null, dealt(cluster.workers));
      await sleep(warmMs);
    }
    const details = { failedBatches: load.failed.length, seconds: Math.max(...seconds) };
    return [summarize('moves/drain', 'tokens/s', `${workers - 1}/${workers} of before`, runs, details)];
  });
}

/** All experts change places under load that is the same for all of them: tokens a second meanwhile, beside before. */
async function benchRebalance(options: BenchOptions): Promise<BenchResult[]> {
  return withLoad(0, async (cluster, client, load) => {
    const runs: { value: number; reference: number }[] = [];
    const slower: number[] = [];
    const orders = [cluster.workers, cluster.workers.toReversed()];
    for (let run = 0; run < options.runs; run += 1) {
      const before = await load.during(() => sleep(calmMs));
      const target = dealt(orders[(run + 1) % 2]!);
      const meanwhile = await load.during(() => rebalance(client, cluster.address, null, target));
      options.log(describe('before', before));
      options.log(describe('meanwhile', meanwhile));
      runs.push({ value: meanwhile.tokensPerSecond, reference: before.tokensPerSecond });
      slower.push(meanwhile.p99Ms / before.p99Ms);
      await sleep(warmMs);
    }
    const details = { failedBatches: load.failed.length, 'p99 of chunks, times that before': median(slower) };
    return [summarize('moves/rebalance', 'tokens/s', 'before', runs, details)];
  });
}

/** Copies of uneven load are brought to where a plan wants them: how many times the tokens a second there are then, beside what it foretold. */
async function benchGain(options: BenchOptions): Promise<BenchResult[]> {
  return withLoad(presets[preset].skew, async (cluster, client, load) => {
    const runs: { value: number; reference: number }[] = [];
    for (let run = 0; run < options.runs; run += 1) {
      const { recording } = await measureLoad(client, { token: null, tls: null }, warmMs / 1000);
      const measured = planInput(recording, null, plans);
      const input = { ...measured, present: [unevenly(measured)] };
      await rebalance(client, cluster.address, null, named(input, input.present));
      await sleep(warmMs);
      const before = await load.during(() => sleep(calmMs));
      const { target } = plan(input);
      await rebalance(client, cluster.address, null, named(input, target));
      await sleep(warmMs);
      const after = await load.during(() => sleep(calmMs));
      options.log(describe('before', before));
      options.log(describe('after', after));
      runs.push({
        value: after.tokensPerSecond / before.tokensPerSecond,
        reference: foretold(input, target),
      });
    }
    const details = { failedBatches: load.failed.length };
    return [summarize('moves/gain', 'times the tokens/s of before', 'foretold', runs, details)];
  });
}

/** `skew`: of the tokens' topics. */
async function withLoad(
  skew: number,
  measure: (cluster: ChaosCluster, client: SwitchyardClient, load: ChunkLoad) => Promise<BenchResult[]>,
): Promise<BenchResult[]> {
  const { hidden } = presets[preset].model;
  const cluster = await ChaosCluster.start({
    workers,
    routers: 1,
    copies: 1,
    preset,
    transport: 'auto',
    leaseMs: 3_000,
    cables: false,
    coordinator: { ...shape, rebalanceSeconds: 0 },
    onLine: () => {},
  });
  const client = await cluster.connect();
  try {
    const { topics } = presets[preset];
    const rows = await syntheticRows(hidden, { sequences: 16, length: chunkTokens, seed: 3, skew, topics });
    const load = await ChunkLoad.start(client, rows, chunkTokens);
    await sleep(warmMs);
    const results = await measure(cluster, client, load);
    await load.stop();
    if (load.failed.length > 0) throw new Error(`${load.failed.length} batches failed: ${load.failed[0]}`);
    return results;
  } finally {
    client.destroy();
    await cluster.stop();
  }
}

const untilJoined = (client: SwitchyardClient, worker: string) =>
  untilNode(client, worker, ({ state }) => state !== 'DRAINING');

const untilFree = (client: SwitchyardClient, worker: string) =>
  untilNode(client, worker, ({ loading, serving, draining }) => loading + serving + draining === 0);

/** Resolves when a living worker is as wanted. */
async function untilNode(
  client: SwitchyardClient,
  worker: string,
  wanted: (node: NodeDescription) => boolean,
): Promise<void> {
  for (;;) {
    const { view } = await client.describeCluster();
    if (view!.nodes.some((node) => node.name === worker && node.state !== 'DEAD' && wanted(node))) return;
    await sleep(pollMs);
  }
}

/** Gives the first worker the most loaded experts, until it has most of the load, and the others the rest. */
function unevenly({ layers, workers }: PlanInput): number[][] {
  const { loads } = layers[0]!;
  const total = loads.reduce((sum, one) => sum + one, 0);
  const order = [...loads.keys()].sort((a, b) => loads[b]! - loads[a]!);
  const holders: number[][] = [];
  let given = 0;
  for (const [index, expert] of order.entries()) {
    const first = given + loads[expert]! <= uneven * total;
    if (first) given += loads[expert]!;
    holders[expert] = [first ? 0 : 1 + (index % (workers.length - 1))];
  }
  return holders;
}

/** As a coordinator deals experts at first. */
function dealt(names: readonly string[]) {
  const workersOf = Array.from({ length: shape.experts }, (_, expert) => [names[expert % names.length]!]);
  return [{ layer: 0, workersOf }];
}

function named({ layers, workers }: PlanInput, copies: PlanInput['present']) {
  return layers.map(({ layer }, index) => ({
    layer,
    workersOf: copies[index]!.map((holders) => holders.map((worker) => workers[worker]!.name)),
  }));
}

/** How many times the tokens a second there should be: the busiest worker decides. */
function foretold({ workers, layers, topK, present }: PlanInput, target: PlanInput['present']): number {
  const [before, after] = [present, target].map((copies) => predict(workers, layers, topK, copies)[0]!.peak);
  return before! / after!;
}

function describe(what: string, { tokensPerSecond, p99Ms, seconds, chunks }: Interval): string {
  return `  ${what}: ${Math.round(tokensPerSecond)} tokens/s, p99 of ${chunks} chunks ${Math.round(p99Ms)} ms, in ${seconds.toFixed(1)} s`;
}

export const moveGroups = {
  'moves/drain': benchDrain,
  'moves/rebalance': benchRebalance,
  'moves/gain': benchGain,
};
