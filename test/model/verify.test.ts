import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { native, type TensorSource } from '../../native/index.js';
import { Model, openModel } from '../../services/model/load.js';
import { type Sample, verifySample } from '../../services/model/reference.js';
import { presets, syntheticModel } from '../../services/model/synthetic.js';
import { type KernelOptions, runKernels } from './kernels.js';
import { failure, fixtures } from './support.js';

/** More than the addon gives to one thread at a time, so that rows are put together from several ranges. */
const chunkTokens = 600;
/** The sample: the last tokens of the chunk. */
const tokens = 48;
const firstToken = chunkTokens - tokens;

type RunOptions = Omit<KernelOptions, 'layers'>;

/** A sample as a cluster returns it: routing is [tokens, layers, topK]. `edit` may write to the sample's inputs. */
async function run(
  model: Model,
  options: RunOptions,
  edit: (inputs: Uint16Array) => void = () => {},
): Promise<Sample> {
  const { hidden } = model.spec;
  const { topK } = model.spec;
  const layers = model.spec.layers.map(({ layer }) => layer);
  const count = chunkTokens;
  const start = await native.synthesizeTokens({ seed: 5, firstToken: 0, count, hidden, skew: 1, topics: 16 });
  const view = start.view();
  edit(new Uint16Array(view.buffer, view.byteOffset + firstToken * hidden * 2, tokens * hidden));
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
  const tokenIds = options.tokenIds?.subarray(firstToken) ?? null;
  const inputs = start.view().slice(firstToken * hidden * 2);
  const outputs = rows.view().slice(firstToken * hidden * 2);
  const feedback = bias !== null;
  return { layers, norm, residual, feedback, inputs, outputs, experts, weights, tokenIds };
}

const spec = presets.tiny.model;
const open = () => openModel({ kind: 'synthetic', spec });

/** The tiny model with gate weights of this size: where logits are hundreds apart, most scores are too small for a float. */
function openSteep(scale: number): Model {
  const { spec: shape, tensors } = syntheticModel(spec);
  return new Model(shape, {
    norm: (layer) => tensors.norm(layer),
    outputNorm: () => null,
    gate: (layer) => {
      const gate = tensors.gate(layer);
      return { ...gate, weight: { ...gate.weight, scale } as TensorSource };
    },
    expert: (layer, expert) => tensors.expert(layer, expert),
    close: () => tensors.close(),
  });
}

const plain = { norm: true, residual: true, bias: null };

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

  test.each([1e-30, 40, 1e6, 1e36])('is verified with gate weights up to %d', async (scale) => {
    const model = openSteep(scale);
    for (const norm of [true, false]) {
      const result = await verifySample(model, await run(model, { ...plain, norm }));
      expect(result).toMatchObject({ tokens, choicesChecked: tokens * 2, choicesWrong: 0, weightsWrong: 0 });
      expect(result.relativeErrorMax).toBeLessThan(2e-2);
    }
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
    unknown[7] = Number.NaN;
    expect((await verifySample(model, { ...sample, weights: unknown })).weightsWrong).toBe(1);
  });

  test('an expert whose logit is lower where the scores of both are too small for a float', async () => {
    const model = openSteep(40);
    const sample = await run(model, plain);
    expect(await verifySample(model, sample)).toMatchObject({ choicesWrong: 0, weightsWrong: 0 });
    const experts = sample.experts.slice();
    const used = [...experts.subarray(0, 2)];
    experts[1] = [0, 1, 2, 3, 4, 5, 6, 7].findLast((expert) => !used.includes(expert))!;
    const result = await verifySample(model, { ...sample, experts });
    expect(result).toMatchObject({ choicesWrong: 1, weightsWrong: 0 });
    expect(result.regretMax).toBeLessThan(1e-6);
    expect(result.logitRegretMax).toBeGreaterThan(1);
  });

  test('experts that are not those of the tokens by their ids', async () => {
    const directory = join(fixtures, 'families', 'deepseek_v4-hash');
    const model = await openModel({ kind: 'checkpoint', directory });
    const tokenIds = Uint32Array.from({ length: chunkTokens }, (_, token) => (token * 7) % 16);
    const sample = await run(model, { norm: false, residual: false, bias: null, tokenIds });
    expect(await verifySample(model, sample)).toMatchObject({
      choicesChecked: 3 * tokens,
      choicesWrong: 0,
      weightsWrong: 0,
    });
    const moved = { ...sample, tokenIds: tokenIds.subarray(firstToken - 1, chunkTokens - 1) };
    expect((await verifySample(model, moved)).choicesWrong).toBeGreaterThan(tokens);
    const error = await failure(() => verifySample(model, { ...sample, tokenIds: null }));
    expect(error.message).toContain('tokenIds is "none"; allowed: the ids of the tokens, as layer 0 chooses');
  });

  test('experts of images for tokens of text, and of text for those of images', async () => {
    const directory = join(fixtures, 'families', 'ernie4_5_vl_moe');
    const model = await openModel({ kind: 'checkpoint', directory });
    const tokenIds = Uint32Array.from({ length: chunkTokens }, (_, token) => (token % 2 === 0 ? 7 : token));
    const sample = await run(model, { norm: true, residual: true, bias: null, tokenIds });
    const right = await verifySample(model, sample);
    expect(right).toMatchObject({ choicesChecked: 2 * tokens, choicesWrong: 0, weightsWrong: 0 });
    expect(right.relativeErrorMax).toBeLessThan(2e-2);
    // The same choices of tokens that are all of one kind.
    for (const all of [new Uint32Array(tokens), new Uint32Array(tokens).fill(7), null]) {
      const { choicesWrong, weightsWrong } = await verifySample(model, { ...sample, tokenIds: all });
      expect(choicesWrong).toBeGreaterThanOrEqual(tokens);
      expect(weightsWrong).toBeGreaterThan(0);
    }
    // Where the bias may have taken part choices are not checked, but that they are of the right kind.
    const feedback = { ...sample, feedback: true, tokenIds: null };
    expect((await verifySample(model, feedback)).weightsWrong).toBeGreaterThan(0);
  });

  test('shapes that do not fit are refused', async () => {
    const model = await open();
    const sample = await run(model, { norm: false, residual: false, bias: null });
    const fewer = verifySample(model, { ...sample, experts: sample.experts.subarray(1) });
    await expect(fewer).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('tokens that are not finite', () => {
  test.each([true, false])('are left out, and the rest is verified, with residual %s', async (residual) => {
    const model = await open();
    for (const norm of [true, false]) {
      const sample = await run(model, { norm, residual, bias: null }, (inputs) => {
        inputs[3] = 0x7fc0;
        inputs[2 * spec.hidden] = 0x7f80;
        inputs[5 * spec.hidden + 9] = 0xff80;
        inputs.fill(0xffff, 47 * spec.hidden, 48 * spec.hidden);
      });
      const result = await verifySample(model, sample);
      expect(result).toMatchObject({ tokens: 44, nonFiniteInputs: 4, nonFiniteOutputs: 0 });
      expect(result).toMatchObject({ choicesChecked: 88, choicesWrong: 0, weightsWrong: 0 });
      expect(result.relativeErrorMax).toBeLessThan(2e-2);
      expect([...sample.weights].every(Number.isFinite)).toBe(true);
    }
  });

  test('must come back as such', async () => {
    const model = await open();
    const sample = await run(model, plain, (inputs) => inputs.fill(0x7fc0, 0, spec.hidden));
    sample.outputs.fill(0, 0, spec.hidden * 2);
    expect((await verifySample(model, sample)).relativeErrorMax).toBeNaN();
  });

  test('are left out too if they overflow in the reference as well', async () => {
    const model = await open();
    const sample = await run(model, { norm: false, residual: true, bias: null }, (inputs) => {
      inputs.fill(0x7e00, 4 * spec.hidden, 6 * spec.hidden);
    });
    const result = await verifySample(model, sample);
    expect(result).toMatchObject({ tokens: 46, nonFiniteInputs: 0, nonFiniteOutputs: 2, choicesWrong: 0 });
    expect(result).toMatchObject({ choicesChecked: 48 + 46, weightsWrong: 0 });
    expect(result.relativeErrorMax).toBeLessThan(2e-2);
    const weights = sample.weights.slice();
    weights[4 * 4] = 3e38;
    weights[5 * 4] = Number.NaN;
    expect((await verifySample(model, { ...sample, weights })).weightsWrong).toBe(2);
  });

  test('may be all there are', async () => {
    const model = await open();
    const sample = await run(model, plain, (inputs) => inputs.fill(0x7fc0));
    expect(await verifySample(model, sample)).toMatchObject({
      tokens: 0,
      nonFiniteInputs: 48,
      relativeError: 0,
    });
  });
});

describe('tokens at the ends of BF16', () => {
  test.each([
    ['zeros', 0x0000, 0x0000],
    ['subnormal', 0x0001, 0x0040],
    ['around the smallest normal', 0x0070, 0x0090],
    ['tiny', 0x0500, 0x1000],
    ['huge', 0x7f00, 0x7f7f],
  ])('that are %s are verified, and a wrong answer among them is found', async (name, low, high) => {
    const model = await open();
    for (const norm of name === 'huge' ? [true] : [true, false]) {
      for (const residual of [true, false]) {
        const sample = await run(model, { norm, residual, bias: null }, (inputs) => {
          for (let index = 0; index < 8 * spec.hidden; index++) {
            inputs[index] = (low + ((index * 37) % (high - low + 1))) | (index % 3 === 0 ? 0x8000 : 0);
          }
        });
        const result = await verifySample(model, sample);
        expect(result).toMatchObject({ tokens, choicesWrong: 0, weightsWrong: 0 });
        expect(result.relativeErrorMax).toBeLessThan(2e-2);
        sample.outputs.copyWithin(0, 20 * spec.hidden * 2, 21 * spec.hidden * 2);
        expect((await verifySample(model, sample)).relativeErrorMax).toBeGreaterThan(0.5);
      }
    }
  });
});
