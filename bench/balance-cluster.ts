import type { RoutingRows, RowsReader } from '../services/client/index.js';
import { evenShares, exponent, imbalance } from './balance.js';
import { repeatedRows, submit } from './batch.js';
import { ChaosCluster } from './chaos/cluster.js';
import { rebalanceByLoad } from './operator.js';
import { eplb } from './peers/eplb.js';
import { randomOf } from './random.js';
import { type BenchOptions, type BenchResult, summarize } from './report.js';

/** Experts for which workers compute longer than rows travel. */
const model = { hidden: 256, ffn: 2048, experts: 64, topK: 2, layers: 1 };
const workers = 8;
const replicaSlots = 8;
const tokens = 65_536;
const chunkTokens = 4_096;

/**
 * How even the rows of the workers of a running cluster are, by the workers' own counters, for tokens whose experts follow Zipf's law: after the
 * coordinator has planned for what it heard of batches before. Beside it EPLB's placement for those batches, with even shares for copies.
 */
async function benchBalanceCluster(options: BenchOptions): Promise<BenchResult[]> {
  const rows = await repeatedRows(model.hidden, tokens);
  const runs: { value: number; reference: number }[] = [];
  for (let run = 0; run < options.runs; run += 1) runs.push(await measure(run, rows));
  return [summarize('balance/zipf-cluster', 'imbalance', 'EPLB', runs)];
}

/** On a cluster of its own, which knows no load but that of this run. */
async function measure(run: number, rows: RowsReader): Promise<{ value: number; reference: number }> {
  const cluster = await ChaosCluster.start({
    workers,
    routers: 1,
    copies: 1,
    preset: 'tiny',
    transport: 'auto',
    leaseMs: 10_000,
    cables: false,
    coordinator: { ...model, replicaSlots, rebalanceSeconds: 0 },
    onLine: () => {},
  });
  const client = await cluster.connect();
  try {
    const load = zipfChoices(run);
    const send = async (seed: number) => {
      const sent = { experts: load(seed), counts: new Float64Array(model.experts) };
      for (const expert of sent.experts) sent.counts[expert]! += 1;
      const weights = new Float32Array(sent.experts.length).fill(0.5);
      const given = (first: number, count: number): RoutingRows => ({
        experts: sent.experts.subarray(first * model.topK, (first + count) * model.topK),
        weights: weights.subarray(first * model.topK, (first + count) * model.topK),
      });
      await submit(client, rows, { chunkTokens, feedback: false, given });
      return sent.counts;
    };
    const known = await send(1);
    await rebalanceByLoad(client, cluster.address, null);
    // The router has heard of the copies by the end of a batch, if not at its start.
    await send(3);
    const before = await rowsOf(cluster);
    const counts = await send(2);
    const after = await rowsOf(cluster);
    const shape = { replicas: model.experts + replicaSlots, groups: 1, nodes: 1, gpus: workers };
    return {
      value: imbalance(after.map((computed, worker) => computed - before[worker]!)),
      reference: imbalance(evenShares(counts, eplb(known, shape), workers)),
    };
  } finally {
    client.destroy();
    await cluster.stop();
  }
}

/** [tokens, topK] Different experts of each token, by Zipf's law in an order that `run` gives. */
function zipfChoices(run: number): (seed: number) => Uint32Array {
  const ofOrder = randomOf(1_000 + run);
  const order = Array.from({ length: model.experts }, (_, expert) => ({ expert, key: ofOrder() }))
    .sort((a, b) => a.key - b.key)
    .map(({ expert }) => expert);
  const ends = order.map((_, rank) => (rank + 1) ** -exponent);
  for (let rank = 1; rank < ends.length; rank += 1) ends[rank]! += ends[rank - 1]!;
  return (seed) => {
    const random = randomOf(seed);
    const choices = new Uint32Array(tokens * model.topK);
    for (let at = 0; at < choices.length; ) {
      const drawn = random() * ends.at(-1)!;
      const expert =
        order[
          Math.min(
            model.experts - 1,
            ends.findIndex((end) => drawn < end),
          )
        ]!;
      if (at % model.topK > 0 && choices.subarray(at - (at % model.topK), at).includes(expert)) continue;
      choices[at++] = expert;
    }
    return choices;
  };
}

/** What each worker has computed since it started. */
async function rowsOf(cluster: ChaosCluster): Promise<Float64Array> {
  const rows = cluster.workers.map(async (name) => {
    const { metricsUrl } = await cluster.processes.get(name)!.listening;
    const text = await (await fetch(`${metricsUrl}/metrics`)).text();
    return Number(/^switchyard_computed_rows_total(?:{[^}]*})? (\S+)$/m.exec(text)![1]);
  });
  return Float64Array.from(await Promise.all(rows));
}

export const balanceClusterGroups = { 'balance/zipf-cluster': benchBalanceCluster };
