import { describe, expect, test } from '@jest/globals';
import { openModel } from '../../services/model/load.js';
import { verifySample } from '../../services/model/reference.js';
import type { SyntheticSpec } from '../../services/model/spec.js';
import { presets } from '../../services/model/synthetic.js';
import {
  type ForwardWishes,
  forward,
  type Outcome,
  overEachTransport,
  shape,
  startCluster,
  tokens,
} from './cluster.js';

/** What the coordinator of a test cluster serves. */
const spec: SyntheticSpec = { ...presets.demo.model, ...shape };

const layers = [0, 1, 2];
const quietly = { feedback: 'OFF', returnRouting: true } as const;

async function verify(rows: Buffer, outcome: Outcome, norm = true, residual = true, of = layers) {
  const model = await openModel({ kind: 'synthetic', spec });
  const asArray = <T>(bytes: Buffer, make: (buffer: ArrayBuffer) => T) =>
    make(new Uint8Array(bytes).buffer as ArrayBuffer);
  return verifySample(model, {
    layers: of,
    norm,
    residual,
    feedback: false,
    inputs: rows,
    outputs: outcome.rows,
    experts: asArray(outcome.experts, (buffer) => new Uint32Array(buffer)),
    weights: asArray(outcome.weights, (buffer) => new Float32Array(buffer)),
    tokenIds: null,
  });
}

const correct = { choicesWrong: 0, weightsWrong: 0 };

/** The outputs of one batch, which every cluster and every transport must give. */
let expected: Buffer | null = null;

overEachTransport(() => {
  describe('a batch', () => {
    test('comes back as the float64 reference computes it, with a summary that adds up', async () => {
      const { routers } = await startCluster();
      const rows = await tokens(200);
      const outcome = await forward(routers[0]!, rows, {
        batchId: 'one',
        options: { ...quietly, chunkTokens: 64 },
      });
      const verified = await verify(rows, outcome);
      expect(verified).toMatchObject({ tokens: 200, choicesChecked: 600, ...correct });
      expect(verified.relativeError).toBeLessThan(1e-2);

      const { summary } = outcome;
      expect(summary).toMatchObject({
        batchId: 'one',
        router: 'router-0',
        tokens: 200,
        nonFiniteTokens: 0,
        retries: 0,
        failedOverRows: 0,
        droppedRows: 0,
        // 4 chunks, 3 layers, 2 workers.
        messagesSent: 24,
        assignments: 200 * 3 * 2,
        bytesReturned: 200 * 3 * 2 * 128,
      });
      expect(summary.bytesSent).toBe(summary.rowsSent * 128);
      expect(summary.rowsSent).toBeLessThan(summary.assignments);
      for (const { layer, rows: perExpert } of summary.layers) {
        const chosen = Array.from({ length: 6 }, (_, expert) => countOf(outcome, layer, expert));
        expect(perExpert).toEqual(chosen);
      }
      expect(summary.balancednessFirst).toBeGreaterThan(0);
      expect(summary.balancednessFirst).toBeLessThanOrEqual(1);
      for (const [stage, seconds] of Object.entries(summary.timings!)) {
        expect([stage, seconds >= 0, Number.isFinite(seconds)]).toEqual([stage, true, true]);
      }
    });

    test('may leave out norm and residual, and run any range of layers', async () => {
      const { routers } = await startCluster();
      const rows = await tokens(40);
      const bare = await forward(routers[0]!, rows, {
        firstLayer: 1,
        lastLayer: 1,
        options: { ...quietly, norm: 'OFF', residual: 'OFF' },
      });
      expect(await verify(rows, bare, false, false, [1])).toMatchObject(correct);
      expect((await verify(rows, bare, false, false, [1])).relativeError).toBeLessThan(1e-2);
      const two = await forward(routers[0]!, rows, { firstLayer: 1, options: quietly });
      expect((await verify(rows, two, true, true, [1, 2])).relativeError).toBeLessThan(1e-2);
      expect(two.summary.layers.map(({ layer }) => layer)).toEqual([1, 2]);
    });

    test('combined by the workers differs from the exact one by rounding alone, and returns fewer bytes', async () => {
      const { routers } = await startCluster();
      const rows = await tokens(100);
      const partial = await forward(routers[0]!, rows, { options: { ...quietly, combine: 'PARTIAL' } });
      expect((await verify(rows, partial)).relativeError).toBeLessThan(1.5e-2);
      expect(partial.summary.bytesReturned).toBe(partial.summary.rowsSent * 128);
    });

    test('of tokens that are not finite says how many', async () => {
      const { routers } = await startCluster();
      const rows = await tokens(10);
      rows.writeUInt16LE(0x7f80, 3 * 128);
      rows.writeUInt16LE(0x7fc0, 7 * 128 + 20);
      const { summary } = await forward(routers[0]!, rows, { options: quietly });
      expect(summary.nonFiniteTokens).toBe(2);
      await expect(
        forward(routers[0]!, rows, { options: { ...quietly, refuseNonFinite: true } }),
      ).rejects.toMatchObject({ code: 'NON_FINITE', details: { token: 3 } });
    });
  });

  function countOf(outcome: Outcome, layer: number, expert: number): number {
    let count = 0;
    for (let at = 0; at < outcome.experts.byteLength; at += 4) {
      const inLayer = Math.floor((at / 4 / 2) % 3) === layer;
      if (inLayer && outcome.experts.readUInt32LE(at) === expert) count += 1;
    }
    return count;
  }

  describe('outputs are the same bits', () => {
    test('for any number of workers, chunk size, message size, router, company and transport', async () => {
      const rows = await tokens(300);
      const check = async (router: Parameters<typeof forward>[0], wishes: ForwardWishes) => {
        const outcome = await forward(router, rows, wishes);
        expected ??= outcome.rows;
        expect(Buffer.compare(outcome.rows, expected)).toBe(0);
        return outcome;
      };
      for (const workers of [1, 2, 4]) {
        const { routers } = await startCluster({ workers, routers: 2 });
        for (const chunkTokens of [1, 7, 64, 300]) {
          await check(routers[chunkTokens % 2]!, { options: { ...quietly, chunkTokens }, messageTokens: 50 });
        }
        await check(routers[0]!, { options: quietly, messageTokens: 1 });
        await check(routers[0]!, { options: quietly, messageTokens: 300 });
        const others = Array.from({ length: 6 }, async (_, seed) =>
          forward(routers[seed % 2]!, await tokens(100 + seed, 2 + seed), { options: { feedback: 'ON' } }),
        );
        const gated = await check(routers[1]!, { options: { ...quietly, chunkTokens: 32 } });
        await Promise.all(others);
        const given = { experts: gated.experts, weights: gated.weights };
        await check(routers[0]!, { options: { ...quietly, routing: 'GIVEN', chunkTokens: 20 }, given });
      }
    });
  });

  describe('feedback', () => {
    test('evens the load out, and leaves batches that do not want it alone', async () => {
      const { routers } = await startCluster({
        workers: 3,
        coordinator: { feedback: true, feedbackRate: 0.02 },
      });
      const rows = await tokens(20_000, 5);
      const off = await forward(routers[0]!, rows, { options: quietly });
      const on = await forward(routers[0]!, rows, { options: { chunkTokens: 50 } });
      const again = await forward(routers[0]!, rows, { options: quietly });
      expect(Buffer.compare(again.rows, off.rows)).toBe(0);
      expect(on.summary.balancednessLast).toBeGreaterThan(off.summary.balancednessLast);
    });
  });
});
