import { describe, expect, test } from '@jest/globals';
import { type ExpertBackend, native, type Slab } from '../../native/index.js';
import { type Model, openModel } from '../../services/model/load.js';
import { type Sample, verifySample } from '../../services/model/reference.js';
import { presets } from '../../services/model/synthetic.js';

/** More than the addon gives to one thread at a time, so that rows are put together from several ranges. */
const chunkTokens = 600;
/** The sample: the last tokens of the chunk. */
const tokens = 48;
const firstToken = chunkTokens - tokens;

/** What a cluster of one worker does with a chunk, by the addon's own operations. */
async function run(model: Model, options: { norm: boolean; residual: boolean; bias: Float32Array | null }) {
  const { hidden, routing } = model.spec;
  const backend = native.createCpuBackend({ threads: 1 });
  const start = await native.synthesizeTokens({
    seed: 5,
    firstToken: 0,
    count: chunkTokens,
    hidden,
    skew: 1,
    topics: 16,
  });
  const layers = model.spec.layers.map(({ layer }) => layer);
  const experts = new Uint32Array(tokens * layers.length * routing.topK);
  const weights = new Float32Array(experts.length);
  let rows = start;
  for (const [index, layer] of layers.entries()) {
    const output = await runLayer(model, backend, layer, rows, options, (chosen, weighed) => {
      for (let token = 0; token < tokens; token++) {
        const from = (firstToken + token) * routing.topK;
        const to = (token * layers.length + index) * routing.topK;
        experts.set(chosen.subarray(from, from + routing.topK), to);
        weights.set(weighed.subarray(from, from + routing.topK), to);
      }
    });
    rows = output;
  }
  backend.close();
  const { norm, residual, bias } = options;
  const sample: Sample = {
    layers,
    norm,
    residual,
    feedback: bias !== null,
    inputs: start.view().slice(firstToken * hidden * 2),
    outputs: rows.view().slice(firstToken * hidden * 2),
    experts,
    weights,
  };
  return sample;
}

async function runLayer(
  model: Model,
  backend: ExpertBackend,
  layer: number,
  rows: Slab,
  options: { norm: boolean; residual: boolean; bias: Float32Array | null },
  record: (experts: Uint32Array, weights: Float32Array) => void,
): Promise<Slab> {
  const { hidden, routing, normEpsilon } = model.spec;
  const { weight, logitBias, selectionBias } = model.gate(layer);
  const count = model.spec.layers.find((each) => each.layer === layer)!.experts;
  const gate = native.createGate({
    weight: await native.readTensor(weight),
    experts: count,
    hidden,
    logitBias,
    selectionBias,
    routing,
  });
  const normWeight = await native.readTensor(model.norm(layer));
  const inputs = options.norm
    ? await native.normalizeRows({
        rows,
        rowCount: chunkTokens,
        hidden,
        weight: normWeight,
        epsilon: normEpsilon,
      })
    : rows;
  const chosen = await native.gateRows({ gate, rows: inputs, rowCount: chunkTokens, bias: options.bias });
  record(chosen.experts, chosen.weights);
  const [group] = await native.packRows({
    rows: inputs,
    rowCount: chunkTokens,
    hidden,
    topK: routing.topK,
    experts: chosen.experts,
    weights: chosen.weights,
    workerOf: new Uint32Array(count),
    workers: 1,
  });
  const output = native.allocateSlab(group!.rowIndices.length * hidden * 2);
  let outputRow = 0;
  for (let segment = 0; segment < group!.segments.length; segment += 2) {
    const expert = await backend.load(model.expert(layer, group!.segments[segment]!));
    const indices = group!.rowIndices.slice(outputRow, outputRow + group!.segments[segment + 1]!);
    await backend.forward(expert, [{ rows: group!.rows, indices, output, outputRow, inputWeights: null }]);
    outputRow += indices.length;
    expert.release();
  }
  return await native.combineRows({
    mode: 'exact',
    rowCount: chunkTokens,
    hidden,
    topK: routing.topK,
    weights: chosen.weights,
    residual: options.residual ? rows : null,
    parts: [{ rows: output, targets: group!.slots }],
  });
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
