import { describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { decodeBf16 } from '../../services/model/bf16.js';
import { openModel, parseModelSource } from '../../services/model/load.js';
import type { SyntheticSpec } from '../../services/model/spec.js';
import { presetNames, presets, tensorStream } from '../../services/model/synthetic.js';
import { failure } from './support.js';

const open = (spec: SyntheticSpec) => openModel({ kind: 'synthetic', spec });
const tiny = presets.tiny.model;

describe('presets', () => {
  test.each([
    ['tiny', { hidden: 256, ffn: 512, experts: 8, topK: 2, layers: 2 }],
    ['demo', { hidden: 1024, ffn: 2816, experts: 16, topK: 2, layers: 4, activation: 'swiglu' }],
    ['fine', { hidden: 4096, ffn: 1536, experts: 32, topK: 8, layers: 1, activation: 'swiglu' }],
    ['reference', { hidden: 4096, ffn: 16384, experts: 16, topK: 2, layers: 1, activation: 'gelu' }],
  ] as const)('%s', async (name, shape) => {
    expect(presets[name].model).toMatchObject(shape);
    const { spec } = await open(presets[name].model);
    expect(spec).toMatchObject({
      name,
      family: 'synthetic',
      hidden: shape.hidden,
      topK: shape.topK,
    });
    expect(spec.layers).toHaveLength(shape.layers);
  });

  test('the reference batch has the size of the specification', () => {
    const { sequences, length, model } = presets.reference;
    expect(sequences * length * model.hidden * 2).toBe(10_485_760_000);
  });
});

describe('a synthetic model', () => {
  test('survives its JSON form', () => {
    for (const name of presetNames) {
      const source = { kind: 'synthetic', spec: presets[name].model } as const;
      expect(parseModelSource(JSON.stringify(source))).toEqual(source);
    }
  });

  test('has another fingerprint when a value changes, its name apart', async () => {
    const variants = [
      tiny,
      { ...tiny, seed: 2 },
      { ...tiny, ffn: 513 },
      { ...tiny, topK: 1 },
      { ...tiny, layers: 3 },
    ];
    variants.push({ ...tiny, hidden: 512 }, { ...tiny, experts: 9 }, { ...tiny, activation: 'gelu' });
    const prints = await Promise.all(variants.map(async (spec) => (await open(spec)).spec.fingerprint));
    expect(new Set(prints).size).toBe(variants.length);
    expect((await open({ ...tiny, name: 'other' })).spec.fingerprint).toBe(prints[0]);
  });

  test('gives every tensor a stream of its own', async () => {
    const model = await open(presets.demo.model);
    const streams = model.spec.layers.flatMap(({ layer, experts }) => [
      model.norm(layer)!.weight,
      model.gate(layer).weight,
      ...Array.from({ length: experts }, (_, expert) => model.expert(layer, expert)).flatMap(
        ({ gate, up, down }) => [gate!, up, down],
      ),
    ]);
    const numbers = streams.map((source) => (source.kind === 'synthetic' ? source.stream : -1));
    expect(numbers.every((stream) => Number.isSafeInteger(stream) && stream >= 0)).toBe(true);
    expect(new Set(numbers).size).toBe(4 * (2 + 16 * 3));
  });

  test('names tensors the same on every machine', () => {
    expect(tensorStream('layers.0.gate')).toBe(6239703060346387);
  });

  test('has weights of the variance that keeps activations O(1)', async () => {
    const model = await open(tiny);
    const variance = async (source: Parameters<typeof native.readTensor>[0]) => {
      const slab = await native.readTensor(source);
      const values = decodeBf16(slab.view());
      slab.release();
      return values.reduce((sum, value) => sum + value * value, 0) / values.length;
    };
    const { gate, up, down } = model.expert(1, 3);
    expect((await variance(gate!)) * tiny.hidden).toBeCloseTo(1, 1);
    expect((await variance(up)) * tiny.hidden).toBeCloseTo(1, 1);
    expect((await variance(down)) * tiny.ffn).toBeCloseTo(1, 1);
    expect((await variance(model.gate(0).weight)) * tiny.hidden).toBeCloseTo(0.25, 1);
  });
});

describe('a model source that is not allowed is refused by key, value and what is allowed', () => {
  test.each<[unknown, string]>([
    ['{', 'model is "{"; allowed: the JSON form'],
    ['7', 'model is 7'],
    [null, 'model is null'],
    [{}, 'allowed: "checkpoint" or "synthetic"'],
    [{ kind: 'remote' }, 'kind is "remote"'],
    [{ kind: 'checkpoint' }, 'directory is missing; allowed: a path'],
    [{ kind: 'checkpoint', directory: '' }, 'directory is ""; allowed: a path'],
    [{ kind: 'synthetic' }, 'spec is missing'],
    [
      { kind: 'synthetic', spec: { ...tiny, hidden: -256 } },
      'spec.hidden is -256; allowed: an integer from 1 to 65536',
    ],
    [{ kind: 'synthetic', spec: { ...tiny, ffn: 2 ** 60 } }, 'spec.ffn is 1152921504606847000'],
    [{ kind: 'synthetic', spec: { ...tiny, experts: 0 } }, 'spec.experts is 0'],
    [{ kind: 'synthetic', spec: { ...tiny, experts: Number.NaN } }, 'spec.experts is NaN'],
    [{ kind: 'synthetic', spec: { ...tiny, topK: 9 } }, 'spec.topK is 9; allowed: an integer from 1 to 8'],
    [
      { kind: 'synthetic', spec: { ...tiny, activation: 'relu' } },
      'spec.activation is "relu"; allowed: "swiglu" or',
    ],
    [{ kind: 'synthetic', spec: { ...tiny, seed: 0.5 } }, 'spec.seed is 0.5'],
    [
      { kind: 'synthetic', spec: { ...tiny, hidden: 65536, ffn: 1048576 } },
      'spec.ffn is 1048576; allowed: a size',
    ],
    [{ kind: 'synthetic', spec: { ...tiny, colour: 1 } }, 'colour'],
  ])('%j', async (source, words) => {
    const error = await failure(() => parseModelSource(source));
    expect(error).toMatchObject({ code: 'MODEL_INVALID' });
    expect(error.message).toContain(words);
  });

  test('openModel checks it too', async () => {
    expect(await failure(() => open({ ...tiny, layers: -1 }))).toMatchObject({ code: 'MODEL_INVALID' });
  });
});
