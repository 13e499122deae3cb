import { execFileSync } from 'node:child_process';
import { cp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { openModel } from '../../services/model/load.js';
import { SafetensorsFile } from '../../services/model/safetensors.js';
import {
  failure,
  fixtures,
  smallNorm,
  smallTensors,
  temporaryDirectory,
  writeCheckpoint,
} from './support.js';

const open = (directory: string) => openModel({ kind: 'checkpoint', directory });

/** A copy of a fixture whose config.json has other values; undefined removes a key. */
async function changed(fixture: string, values: Record<string, unknown>): Promise<string> {
  const directory = join(await temporaryDirectory(), 'model');
  await cp(join(fixtures, fixture), directory, { recursive: true });
  const path = join(directory, 'config.json');
  const config = JSON.parse(await readFile(path, 'utf8'));
  await writeFile(path, JSON.stringify({ ...config, ...values }));
  return directory;
}

describe('a checkpoint is described', () => {
  test.each(['mixtral', 'mixtral-fused'])('%s', async (fixture) => {
    const model = await open(join(fixtures, fixture));
    expect(model.spec).toMatchObject({
      name: fixture,
      family: 'mixtral',
      hidden: 48,
      topK: 2,
      weighsInput: false,
      layers: [0, 1, 2].map((layer) => ({
        layer,
        experts: 6,
        routing: { topK: 2, score: 'softmax', renormalise: true, scale: 1, groups: 1, weightOn: 'output' },
        expert: { ffn: 40, activation: 'swiglu' },
        shared: [],
      })),
      normEpsilon: 1e-5,
    });
    expect(model.expertBytes).toBe(3 * 48 * 40 * 2);
    model.close();
  });

  test.each(['qwen3_moe', 'qwen3_moe-fused'])('%s, without its dense layer', async (fixture) => {
    const model = await open(join(fixtures, fixture));
    expect(model.spec).toMatchObject({
      family: 'qwen3_moe',
      normEpsilon: 1e-6,
      layers: [0, 2].map((layer) => ({ layer, routing: { renormalise: true } })),
    });
    expect(model.spec.layers.map(({ layer }) => layer)).toEqual([0, 2]);
    const error = await failure(() => model.norm(1));
    expect(error).toMatchObject({ code: 'UNKNOWN_LAYER' });
    expect(error.message).toContain('layer is 1; allowed: 0, 2');
    expect(await failure(() => model.expert(0, 6))).toMatchObject({ code: 'INVALID_ARGUMENT' });
    model.close();
  });

  test('Qwen3 weights are renormalised only if the configuration says so', async () => {
    const model = await open(join(fixtures, 'qwen3_moe-unnormalised'));
    expect(model.spec.layers[0]!.routing.renormalise).toBe(false);
    expect(
      (await open(await changed('qwen3_moe', { norm_topk_prob: undefined }))).spec.layers[0]!.routing
        .renormalise,
    ).toBe(false);
  });

  test('decoder_sparse_step 2 gives experts to every second layer', async () => {
    const directory = await changed('qwen3_moe', { decoder_sparse_step: 3, mlp_only_layers: null });
    expect((await open(directory)).spec.layers.map(({ layer }) => layer)).toEqual([2]);
  });

  test('Solar Open has no dense layers, whatever the configuration says', async () => {
    const model = await open(await changed('families/solar_open', { first_k_dense_replace: 1 }));
    expect(model.spec.layers.map(({ layer }) => layer)).toEqual([0, 1, 2]);
    model.close();
  });

  test('the number of Qwen3 experts may go by either name', async () => {
    const directory = await changed('qwen3_moe', { num_experts: 6, num_local_experts: undefined });
    expect((await open(directory)).spec.layers[0]).toMatchObject({ layer: 0, experts: 6 });
  });
});

describe('a fingerprint', () => {
  test('is the same in another directory, and another for other weights or routing', async () => {
    const prints = await Promise.all(
      [
        join(fixtures, 'qwen3_moe'),
        await changed('qwen3_moe', {}),
        await changed('qwen3_moe', { norm_topk_prob: false }),
        await changed('qwen3_moe', { transformers_version: '9' }),
        join(fixtures, 'mixtral'),
      ].map(async (directory) => (await open(directory)).spec.fingerprint),
    );
    expect(prints[1]).toBe(prints[0]);
    expect(prints[2]).not.toBe(prints[0]);
    expect(prints[3]).toBe(prints[0]);
    expect(prints[4]).not.toBe(prints[0]);
  });

  test('changes with one weight', async () => {
    const directory = await changed('mixtral', {});
    const before = (await open(directory)).spec.fingerprint;
    const path = join(directory, 'model.safetensors');
    const bytes = await readFile(path);
    bytes[bytes.length - 3]! ^= 1;
    await writeFile(path, bytes);
    expect((await open(directory)).spec.fingerprint).not.toBe(before);
  });
});

describe('a configuration that is not allowed is refused by key, value and what is allowed', () => {
  test.each<[string, Record<string, unknown>, string]>([
    ['mixtral', { hidden_size: -48 }, 'hidden_size is -48; allowed: an integer from 1 to 65536'],
    ['mixtral', { hidden_size: 1e12 }, 'hidden_size is 1000000000000; allowed'],
    ['mixtral', { hidden_size: 48.5 }, 'hidden_size is 48.5'],
    ['mixtral', { hidden_size: '48' }, 'hidden_size is "48"'],
    ['mixtral', { intermediate_size: null }, 'intermediate_size is null; allowed: an integer'],
    ['mixtral', { num_hidden_layers: 0 }, 'num_hidden_layers is 0'],
    ['mixtral', { num_local_experts: -1 }, 'num_local_experts is -1'],
    ['mixtral', { num_experts_per_tok: 7 }, 'num_experts_per_tok is 7; allowed: 1 to 6'],
    ['mixtral', { rms_norm_eps: -1 }, 'rms_norm_eps is -1; allowed: a number from 0 to 1'],
    ['mixtral', { hidden_act: 'gelu' }, 'hidden_act is "gelu"; allowed: "silu"'],
    ['mixtral', { model_type: 'llama' }, 'model_type is "llama"; allowed: mixtral, '],
    ['mixtral', { model_type: '__proto__' }, 'model_type is "__proto__"'],
    ['qwen3_moe', { num_local_experts: null }, 'num_local_experts is null; allowed: an integer'],
    ['qwen3_moe', { num_local_experts: -4 }, 'num_local_experts is -4'],
    ['qwen3_moe', { norm_topk_prob: 'yes' }, 'norm_topk_prob is "yes"; allowed: true or false'],
    ['qwen3_moe', { decoder_sparse_step: 0 }, 'decoder_sparse_step is 0'],
    ['qwen3_moe', { mlp_only_layers: 'all' }, 'mlp_only_layers is "all"; allowed: a list of layer numbers'],
    ['qwen3_moe', { mlp_only_layers: [0, 1, 2] }, 'layers with experts is none'],
    [
      'mixtral',
      { hidden_size: 65536, intermediate_size: 1048576 },
      'the size of an expert is 412316860416 bytes',
    ],
    ['mixtral', { hidden_size: 64 }, 'shape is [48]; allowed: [64] by the configuration'],
    // What transformers takes for a size that is not there.
    ['mixtral', { intermediate_size: undefined }, 'shape is [40,48]; allowed: [14336,48]'],
    ['families/dots1', { n_routed_experts: undefined }, 'num_experts is missing; allowed: an integer'],
    ['mixtral', { num_hidden_layers: 4 }, '"model.layers.3.post_attention_layernorm.weight" is missing'],
  ])('%s with %j', async (fixture, values, words) => {
    const error = await failure(async () => open(await changed(fixture, values)));
    expect(error).toMatchObject({ code: 'MODEL_INVALID' });
    expect(error.message).toContain(words);
    expect(error.message).toContain('model/');
  });

  test.each([
    ['no configuration', 'config.json', null],
    ['a configuration that is not JSON', 'config.json', '{'],
    ['a configuration that is not an object', 'config.json', 'null'],
    ['no weights', 'model.safetensors', null],
    ['an index that is not an object', 'model.safetensors.index.json', '[]'],
    ['an index without a map', 'model.safetensors.index.json', '{}'],
    [
      'an index that points elsewhere',
      'model.safetensors.index.json',
      '{"weight_map":{"a":"../a.safetensors"}}',
    ],
    ['an index of other tensors', 'model.safetensors.index.json', '{"weight_map":{"a":"model.safetensors"}}'],
  ])('%s', async (_, file, content) => {
    const directory = await changed('mixtral', {});
    if (content === null) await rm(join(directory, file));
    else await writeFile(join(directory, file), content);
    const error = await failure(() => open(directory));
    expect(error).toMatchObject({ code: 'MODEL_INVALID' });
    expect(error.message).toContain(directory);
  });

  test.each(['config.json', 'model.safetensors.index.json'])('a FIFO in place of %s', async (file) => {
    const directory = await changed('mixtral', {});
    await rm(join(directory, file), { force: true });
    execFileSync('mkfifo', [join(directory, file)]);
    const error = await failure(() => open(directory));
    expect(error).toMatchObject({ code: 'MODEL_INVALID', details: { file: join(directory, file) } });
    expect(error.message).toContain('it is no regular file');
  });
});

describe('tensors of a checkpoint', () => {
  test('a missing one is named with its file', async () => {
    const directory = await changed('qwen3_moe', {});
    const path = join(directory, 'model.safetensors.index.json');
    const index = JSON.parse(await readFile(path, 'utf8'));
    const tensor = 'model.layers.2.mlp.experts.3.up_proj.weight';
    delete index.weight_map[tensor];
    await writeFile(path, JSON.stringify(index));
    const error = await failure(() => open(directory));
    expect(error).toMatchObject({ code: 'MODEL_INVALID', details: { tensor, file: path } });
  });

  test('that the index places in the wrong file are named with that file', async () => {
    const directory = await changed('qwen3_moe', {});
    const path = join(directory, 'model.safetensors.index.json');
    const index = JSON.parse(await readFile(path, 'utf8'));
    const tensor = 'model.layers.0.mlp.gate.weight';
    const files = [...new Set(Object.values<string>(index.weight_map))];
    const wrong = files.find((file) => file !== index.weight_map[tensor])!;
    index.weight_map[tensor] = wrong;
    await writeFile(path, JSON.stringify(index));
    expect((await failure(() => open(directory))).details).toEqual({ tensor, file: join(directory, wrong) });
  });

  test('of a dtype that cannot be loaded are refused', async () => {
    const tensors = smallTensors();
    tensors[smallNorm]!.dtype = 'I16';
    const directory = await writeCheckpoint(tensors);
    const error = await failure(() => open(directory));
    expect(error.message).toContain('weight": dtype is I16; allowed: BF16, F16, F32');
  });

  test('that are not needed are not even opened', async () => {
    const directory = await changed('qwen3_moe', {});
    const path = join(directory, 'model.safetensors.index.json');
    const index = JSON.parse(await readFile(path, 'utf8'));
    for (const tensor of Object.keys(index.weight_map)) {
      if (!/mlp|post_attention/.test(tensor) || tensor.includes('layers.1.')) {
        index.weight_map[tensor] = 'absent.safetensors';
      }
    }
    await writeFile(path, JSON.stringify(index));
    (await open(directory)).close();
  });

  test('are found through links, as download caches lay them out', async () => {
    const directory = await temporaryDirectory();
    for (const file of ['config.json', 'model.safetensors']) {
      await symlink(join(fixtures, 'mixtral', file), join(directory, file));
    }
    (await open(directory)).close();
  });
});

describe('the experts of tokens by their ids', () => {
  const hashed = 'families/deepseek_v4-hash';
  const table = 'model.layers.1.ffn.gate.tid2eid';

  /** The fixture whose table has another element. */
  async function edited(element: number, value: bigint): Promise<string> {
    const directory = await changed(hashed, {});
    const path = join(directory, 'model.safetensors');
    const { header } = await SafetensorsFile.open(path);
    const bytes = await readFile(path);
    bytes.writeBigInt64LE(value, header.tensors.get(table)!.byteOffset + element * 8);
    await writeFile(path, bytes);
    return directory;
  }

  const read = async (directory: string) => {
    const model = await open(directory);
    try {
      return await model.gate(1).tokenExperts!.read();
    } finally {
      model.close();
    }
  };

  test('are read where a layer chooses by them, and are part of the fingerprint', async () => {
    const model = await open(join(fixtures, hashed));
    expect(model.spec.layers.map(({ vocabulary }) => vocabulary)).toEqual([16, 16, 0]);
    expect(model.gate(2).tokenExperts).toBeNull();
    expect(model.gate(1).selectionBias).toBeNull();
    const experts = await model.gate(1).tokenExperts!.read();
    expect(experts).toHaveLength(16 * 2);
    expect(Math.max(...experts)).toBeLessThan(8);
    const other = await open(await edited(5, BigInt((experts[5]! + 1) % 8)));
    expect(other.spec.fingerprint).not.toBe(model.spec.fingerprint);
    model.close();
    other.close();
  });

  test.each([
    [8n, 'element 3 is 8; allowed: 0 to 7'],
    [-1n, 'element 3 is -1; allowed: 0 to 7'],
    [1n << 40n, 'element 3 is 1099511627776; allowed: 0 to 7'],
  ])('are refused where one is %p', async (value, text) => {
    const directory = await edited(3, value);
    const error = await failure(() => read(directory));
    expect(error.code).toBe('MODEL_INVALID');
    expect(error.message).toContain(`${directory}/model.safetensors: tensor "${table}": ${text}`);
  });

  test('are refused for another vocabulary than the configuration has', async () => {
    const error = await failure(async () => open(await changed(hashed, { vocab_size: 15 })));
    expect(error.code).toBe('MODEL_INVALID');
    expect(error.message).toContain('shape is [16,2]; allowed: [15,2] by the configuration');
  });

  test('are missed by name', async () => {
    const error = await failure(async () =>
      open(await changed('families/deepseek_v4', { mlp_layer_types: ['moe', 'hash_moe', 'moe'] })),
    );
    expect(error.message).toContain(`tensor "${table}" is missing`);
  });
});

describe('experts of images beside those of text', () => {
  const fixture = 'families/ernie4_5_vl_moe';
  const outer = { text_config: undefined, image_token_id: undefined };

  /** The fixture's text_config, with other values. */
  async function textConfig(values: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
    const config = JSON.parse(await readFile(join(fixtures, fixture, 'config.json'), 'utf8'));
    return { ...config.text_config, ...values };
  }

  async function refusal(directory: Promise<string>): Promise<string> {
    const error = await failure(async () => open(await directory));
    expect(error.code).toBe('MODEL_INVALID');
    return error.message;
  }

  test('are described, and the largest expert counts', async () => {
    const model = await open(join(fixtures, fixture));
    const [layer] = model.spec.layers;
    expect(layer).toMatchObject({ layer: 1, experts: 18, expert: { ffn: 16 } });
    expect(layer!.isolated).toMatchObject({ experts: 8, expert: { ffn: 8 } });
    expect(model.expert(1, 8).up).toMatchObject({ rows: 8 });
    expect(model.expert(1, 16).up).toMatchObject({ rows: 16 });
    expect(model.spec.expertBytes).toBe(3 * 16 * 32 * 2);
    model.close();
    const wide = await open(
      await changed(fixture, { text_config: await textConfig({ moe_intermediate_size: [16, 16] }) }),
    ).catch((error) => error.message);
    expect(wide).toContain('shape is [8,32]; allowed: [16,32] by the configuration');
  });

  test('may be configured as the publisher does: without text_config, by lists, with im_patch_id', async () => {
    const text = await textConfig({
      mlp_layer_types: undefined,
      moe_num_experts: [8, 8],
      moe_layer_start_index: [1, 1],
      moe_layer_end_index: [2, 1],
      moe_layer_interval: 1,
    });
    const published = { ...text, model_type: 'ernie4_5_moe_vl', im_patch_id: 3 };
    const model = await open(await changed(fixture, { ...outer, ...published }));
    expect(model.spec.layers.map(({ layer }) => layer)).toEqual([1, 2]);
    expect(model.spec.layers[0]!.isolated!.tokenIds).toEqual([3, 4, 7, 9, 12, 15]);
    model.close();
  });

  test('have the tokens that transformers takes by default', async () => {
    const names = ['image', 'image_start', 'image_end', 'video', 'video_start', 'video_end'];
    const none = Object.fromEntries(names.map((name) => [`${name}_token_id`, undefined]));
    const model = await open(await changed(fixture, none));
    expect(model.spec.layers[0]!.isolated!.tokenIds).toEqual([
      100_295, 101_304, 101_305, 101_306, 101_307, 103_367,
    ]);
    model.close();
  });

  test.each([
    [
      'video_token_id',
      { video_token_id: -1 },
      'video_token_id is -1; allowed: an integer from 0 to 4294967295',
    ],
    [
      'im_patch_id',
      { image_token_id: undefined, im_patch_id: 'a' },
      'im_patch_id is "a"; allowed: an integer',
    ],
  ])('and a wrong %s are refused by its name', async (_, values, text) => {
    expect(await refusal(changed(fixture, values))).toContain(text);
  });

  test.each([
    [{ moe_num_experts: [8, 4] }, 'is [8,4]; allowed: an integer from 1 to 4096, or a list of equal ones'],
    [
      { moe_intermediate_size: [16, 16, 16] },
      'is [16,16,16]; allowed: one value, or two: for text and for images',
    ],
  ])('of %j are refused', async (values, text) => {
    const changes = { text_config: await textConfig(values) };
    expect(await refusal(changed(fixture, changes))).toContain(`${Object.keys(values)[0]} ${text}`);
  });

  test.each([
    ['', 'mlp.gate.weight_1'],
    ['', 'mlp.experts.15.down_proj.weight'],
    ['-fused', 'mlp.vision_moe.experts.down_proj'],
    ['-fused', 'mlp.vision_moe.gate.weight'],
    ['-fused', 'mlp.vision_moe.gate.moe_statics.e_score_correction_bias'],
  ])('are missed by name (%s %s)', async (form, name) => {
    const directory = await changed(`${fixture}${form}`, {});
    const file = join(directory, 'model.safetensors');
    const bytes = await readFile(file);
    // Another name of the same length.
    const prefix = form === '' ? 'model.layers' : 'model.language_model.layers';
    const tensor = `${prefix}.2.${name}`;
    const at = bytes.indexOf(`"${tensor}"`);
    expect(at).toBeGreaterThan(0);
    bytes.write('x', at + tensor.length);
    await writeFile(file, bytes);
    expect(await refusal(Promise.resolve(directory))).toContain(`tensor "${tensor}" is missing`);
  });
});
