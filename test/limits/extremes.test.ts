import { afterAll, expect, jest, test } from '@jest/globals';
import fc from 'fast-check';
import { endHosts, inputOf, type Outcome, send, untilIdle, withCluster } from './clusters.js';
import { type BatchWishes, type ClusterWishes, clusters } from './extremes.js';

/** scripts/check-limits.mjs runs more of them; seed and path replay what failed. */
const { SWITCHYARD_LIMIT_RUNS, SWITCHYARD_LIMIT_SEED, SWITCHYARD_LIMIT_PATH } = process.env;
const runs = Number(SWITCHYARD_LIMIT_RUNS ?? 20);
const seed = Number(SWITCHYARD_LIMIT_SEED ?? 1);

jest.setTimeout(120_000 + runs * 30_000);
afterAll(endHosts);

const settings = /messageBytesMax|linkWindowBytes|slabBytes|budgetBytes|batchesMax/;
const inputs = new Map<number, Buffer>();
const references = new Map<string, Outcome>();
let completed = 0;
/** By setting. */
const refusals = new Map<string, number>();

/** What a cluster with default limits answers to all tokens of a model; `partial` depends on where experts are. */
async function referenceOf(
  { model, workers }: ClusterWishes,
  combine: BatchWishes['combine'],
): Promise<Outcome> {
  const key = combine === 'exact' ? `${model}` : `${model} on ${workers}`;
  const known = references.get(key);
  if (known) return known;
  const wishes = { model, workers, routers: 1, worker: {}, router: {}, batches: [] };
  const all: BatchWishes = {
    sequences: 1,
    fill: 1,
    chunkTokens: 0,
    combine,
    given: false,
    returnRouting: true,
    transport: 'grpc',
  };
  const outcome = await withCluster(wishes, (cluster) => send(cluster, all, inputs.get(model)!, null));
  if (outcome.error) throw outcome.error;
  references.set(key, outcome);
  return outcome;
}

function check(batch: BatchWishes, outcome: Outcome, reference: Outcome): void {
  const { error, rows, experts, weights } = outcome;
  if (error !== null) {
    // A router that no worker has a window for is not ready, and says why.
    const unready = error.code === 'NOT_READY' && /slabBytes \(\d+\)/.test(error.message);
    const setting = unready ? 'slabBytes' : String(error.details.setting);
    if (!unready) {
      expect(['TOO_LARGE', 'RESOURCE_EXHAUSTED']).toContain(error.code);
      expect(error.details.node).toMatch(/^(worker|router) \S+$/);
    }
    expect(setting).toMatch(settings);
    refusals.set(setting, (refusals.get(setting) ?? 0) + 1);
    return;
  }
  completed += 1;
  expect(Buffer.compare(rows, reference.rows.subarray(0, rows.byteLength))).toBe(0);
  if (!batch.returnRouting) return;
  expect(experts).toEqual(reference.experts.subarray(0, experts.length));
  expect(weights).toEqual(reference.weights.subarray(0, weights.length));
}

test(`whatever limits are set in ${runs} clusters, batches complete with the same bits, or are refused by the setting before a row moves`, async () => {
  await fc.assert(
    fc.asyncProperty(clusters, async (wishes) => {
      if (!inputs.has(wishes.model)) inputs.set(wishes.model, await inputOf(wishes.model));
      const input = inputs.get(wishes.model)!;
      const expected: Outcome[] = [];
      for (const { combine } of wishes.batches) expected.push(await referenceOf(wishes, combine));
      await withCluster(wishes, async (cluster) => {
        const outcomes = await Promise.all(
          wishes.batches.map((batch, index) => send(cluster, batch, input, expected[index]!)),
        );
        for (const [index, outcome] of outcomes.entries())
          check(wishes.batches[index]!, outcome, expected[index]!);
        const sent = await untilIdle(cluster);
        // A batch that is refused by one of several routers is cancelled at the others, which may have begun.
        const split = wishes.routers > 1 && wishes.batches.some(({ sequences }) => sequences > 1);
        const own = outcomes.reduce((sum, { messages }) => sum + messages, 0);
        if (!split || outcomes.every(({ error }) => error === null)) expect(sent).toBe(own);
      });
    }),
    {
      numRuns: runs,
      seed,
      ...(SWITCHYARD_LIMIT_PATH && { path: SWITCHYARD_LIMIT_PATH }),
      endOnFailure: true,
    },
  );
  const by = [...refusals].map(([setting, count]) => `${setting} ${count}`).join(', ');
  process.stderr.write(`${completed} batches completed; refused: ${by}\n`);
});
