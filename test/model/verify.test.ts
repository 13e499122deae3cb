import { describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { type Model, openModel } from '../../services/model/load.js';
import { type Sample, verifySample } from '../../services/model/reference.js';
import { presets } from '../../services/model/synthetic.js';
import { type KernelOptions, runKernels } from './kernels.js';

/** More than the addon gives to one thread at a time, so that rows are put together from several ranges. */
const chunkTokens = 600;
/** The sample: the last tokens of the chunk. */
const tokens = 48;
const firstToken = chunkTokens - tokens;

/** A sample as a cluster returns it: routing is [tokens, layers, topK]. */
async function run(model: Model, options: Omit<KernelOptions, 'layers'>): Promise<Sample> {
  const { hidden } = model.spec;
  const { topK } = model.spec.routing;
  const layers = model.spec.layers.map(({ layer }) => layer);
  const count = chunkTokens;
  const start = await native.synthesizeTokens({ seed: 5, firstToken: 0, count, hidden, skew: 1, topics: 16 });
  const { rows, routing } = await runKernels(model, start, { ...options, layers });
  const experts = new Uint32Array(tokens * layers.length * topK);
  const weights = new Float32Array(experts.length);
  for (const [index, chosen] of routing.entries()) {
    for (let token = 0; token < tokens; token++) {
      const from = (firstToken + token) * topK;
      const to = (token * layers.length + index) * topK;
      experts.set(chosen.experts.subarray(from, from + topK), to);
      weights.set(chosen.weights.subarray(from, from + topK), to);
    }
  }
  const { norm, residual, bias } = options;
  const inputs = start.view().slice(firstToken * hidden * 2);
  const outputs = rows.view().slice(firstToken * hidden * 2);
  return { layers, norm, residual, feedback: bias !== null, inputs, outputs, experts, weights };
}

const open = () => openModel({ kind: 'synthetic', spec: presets.tiny.model });

describe('a sample that the kernels computed', () => {
  test.each([
    [true, true],
    [true, false],
    [false, true],
    [false, false],
  ])('is verified with norm %s and residual %s', async (norm, residual) => {
    const model = await open();
    const result = await verifySample(model, await run(model, { norm, residual, bias: null }));
    expect(result).toMatchObject({ tokens, choicesChecked: tokens * 2, choicesWrong: 0, weightsWrong: 0 });
    expect(result.relativeError).toBeGreaterThan(0);
    expect(result.relativeError).toBeLessThan(1e-2);
    expect(result.relativeErrorMax).toBeLessThan(2e-2);
  });

  test('is verified under a selection bias, apart from the choice', async () => {
    const model = await open();
    const bias = Float32Array.from({ length: 8 }, (_, expert) => (expert % 3) * 0.05);
    const sample = await run(model, { norm: true, residual: true, bias });
    const result = await verifySample(model, sample);
    expect(result).toMatchObject({ choicesChecked: 0, weightsWrong: 0 });
    expect(result.relativeError).toBeLessThan(1e-2);
    const unbiased = await verifySample(model, { ...sample, feedback: false });
    expect(unbiased.choicesWrong).toBeGreaterThan(0);
  });
});

describe('a wrong answer is found', () => {
  test('a row of zeros, a row of another token, a value that is not finite', async () => {
    const model = await open();
    const sample = await run(model, { norm: true, residual: true, bias: null });
    const rowBytes = model.spec.hidden * 2;
    const zeros = sample.outputs.slice();
    zeros.fill(0, rowBytes, 2 * rowBytes);
    expect((await verifySample(model, { ...sample, outputs: zeros })).relativeErrorMax).toBe(1);
    const moved = sample.outputs.slice();
    moved.copyWithin(0, rowBytes, 2 * rowBytes);
    expect((await verifySample(model, { ...sample, outputs: moved })).relativeErrorMax).toBeGreaterThan(0.1);
    const infinite = sample.outputs.slice();
    infinite.set([0x80, 0x7f], 0);
    expect((await verifySample(model, { ...sample, outputs: infinite })).relativeError).toBe(Infinity);
    infinite.set([0xc0, 0x7f], 0);
    expect((await verifySample(model, { ...sample, outputs: infinite })).relativeError).toBeNaN();
  });

  test('an expert that is not the best, and weights in the wrong order', async () => {
    const model = await open();
    const sample = await run(model, { norm: true, residual: true, bias: null });
    const experts = sample.experts.slice();
    const used = [...experts.subarray(0, 2)];
    experts[1] = [0, 1, 2, 3, 4, 5, 6, 7].findLast((expert) => !used.includes(expert))!;
    expect((await verifySample(model, { ...sample, experts })).choicesWrong).toBeGreaterThan(0);
    const weights = sample.weights.slice();
    weights.subarray(0, 2).reverse();
    expect((await verifySample(model, { ...sample, weights })).weightsWrong).toBe(2);
    const unknown = sample.weights.slice();
    unknown[5] = Number.NaN;
    expect((await verifySample(model, { ...sample, weights: unknown })).weightsWrong).toBe(1);
  });

  test('shapes that do not fit are refused', async () => {
    const model = await open();
    const sample = await run(model, { norm: false, residual: false, bias: null });
    const fewer = verifySample(model, { ...sample, experts: sample.experts.subarray(1) });
    await expect(fewer).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
