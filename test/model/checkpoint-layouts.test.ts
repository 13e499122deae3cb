import { cp, mkdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { openModel } from '../../services/model/load.js';
import {
  failure,
  fixtures,
  type StoredTensor,
  small,
  smallConfig,
  smallGate,
  smallTensors,
  smallUp,
  temporaryDirectory,
  writeCheckpoint,
  writeSafetensors,
} from './support.js';

const indexName = 'model.safetensors.index.json';
const pointer =
  'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0\nsize 4976698672\n';

async function openDirectory(directory: string): Promise<void> {
  (await openModel({ kind: 'checkpoint', directory })).close();
}

async function refusal(directory: string): Promise<string> {
  const error = await failure(() => openDirectory(directory));
  expect(error).toMatchObject({ code: 'MODEL_INVALID' });
  return error.message;
}

async function sharded(): Promise<string> {
  const directory = join(await temporaryDirectory(), 'model');
  await cp(join(fixtures, 'qwen3_moe'), directory, { recursive: true });
  return directory;
}

describe('a tensor that nobody needs', () => {
  test.each(['F8_E4M3FNUZ', 'F8_E5M2FNUZ', 'of a later version'])('may have the dtype %s', async (dtype) => {
    const tensors = smallTensors();
    tensors['lm_head.weight'] = { dtype, shape: [3], data: new Uint8Array(7) };
    await openDirectory(await writeCheckpoint(tensors));
  });

  test('and one that is needed may not: file, tensor and dtype are named', async () => {
    const tensors = smallTensors();
    const { ffn, hidden } = small;
    tensors[smallUp] = { dtype: 'F8_E4M3FNUZ', shape: [ffn, hidden], data: new Uint8Array(ffn * hidden) };
    const directory = await writeCheckpoint(tensors);
    const file = join(directory, 'model.safetensors');
    expect(await refusal(directory)).toBe(
      `${file}: tensor "${smallUp}": dtype is F8_E4M3FNUZ; allowed: BF16, F16, F32`,
    );
  });
});

describe('JSON as Python writes it', () => {
  /** The configuration with further text behind its first brace. */
  const configWith = (text: string) => JSON.stringify(smallConfig).replace('{', `{${text},`);

  test('NaN and infinities are taken where they do not matter, and left alone in texts', async () => {
    const directory = await writeCheckpoint(smallTensors());
    const text = '"a": NaN, "b": [Infinity, -Infinity], "NaN": "Infinity \\" NaN", "c": "\\\\"';
    await writeFile(join(directory, 'config.json'), configWith(text));
    await openDirectory(directory);
  });

  test.each([
    ['"rms_norm_eps": NaN', 'rms_norm_eps is "NaN"; allowed: a number from 0 to 1'],
    ['"rms_norm_eps": -Infinity', 'rms_norm_eps is "-Infinity"; allowed'],
    ['"hidden_act": Infinity', 'hidden_act is "Infinity"; allowed: "silu"'],
    // JSON has no infinity, but 1e999 is read as one.
    ['"rms_norm_eps": 1e999', 'rms_norm_eps is Infinity; allowed'],
  ])('%s is refused by the key', async (text, words) => {
    const directory = await writeCheckpoint(smallTensors());
    const file = join(directory, 'config.json');
    await writeFile(file, configWith(text));
    expect(await refusal(directory)).toContain(`${file}: ${words}`);
  });

  test.each(['NaN', '{"a": nan}', '{"a": NaN', '{"a": "NaN}', '{"a": +Infinity}', '{"a": NaNa}', ''])(
    '%j is refused by the name of the file',
    async (text) => {
      const directory = await writeCheckpoint(smallTensors());
      const file = join(directory, 'config.json');
      await writeFile(file, text);
      expect(await refusal(directory)).toContain(file);
    },
  );

  test('an index may hold them too', async () => {
    const directory = await sharded();
    const file = join(directory, indexName);
    const text = await readFile(file, 'utf8');
    await writeFile(file, text.replace('{', '{"metadata_of_training": {"loss": NaN},'));
    await openDirectory(directory);
  });
});

describe('which files hold the weights', () => {
  test('a file beside an index of other files is refused, since either may be stale', async () => {
    const directory = await sharded();
    await writeSafetensors(join(directory, 'model.safetensors'), smallTensors());
    const message = await refusal(directory);
    for (const part of [directory, 'weights twice', 'model.safetensors', indexName, 'remove']) {
      expect(message).toContain(part);
    }
  });

  test('an index may name the single file', async () => {
    const tensors = smallTensors();
    const directory = await writeCheckpoint(tensors);
    const weightMap = Object.fromEntries(Object.keys(tensors).map((name) => [name, 'model.safetensors']));
    await writeFile(join(directory, indexName), JSON.stringify({ weight_map: weightMap }));
    await openDirectory(directory);
  });

  test('shards without an index are named, and the index that is missing', async () => {
    const directory = await sharded();
    await rm(join(directory, indexName));
    const message = await refusal(directory);
    for (const part of [
      directory,
      'model-00001-of-00003.safetensors',
      'model-00003-of-00003',
      indexName,
      'missing',
    ]) {
      expect(message).toContain(part);
    }
  });

  test('a shard that is missing is named, with the index that names it', async () => {
    const directory = await sharded();
    await rm(join(directory, 'model-00002-of-00003.safetensors'));
    const message = await refusal(directory);
    expect(message).toContain(`${join(directory, 'model-00002-of-00003.safetensors')}: is missing`);
    expect(message).toContain(indexName);
  });

  test.each([
    ['pytorch_model-00001-of-00002.bin', 'convert'],
    ['consolidated.safetensors', 'another format'],
    ['weights.safetensors', 'another name than model.safetensors'],
    ['model.gguf', 'convert'],
  ])('%s alone is named, with what to do', async (name, words) => {
    const directory = await writeCheckpoint(smallTensors());
    await rename(join(directory, 'model.safetensors'), join(directory, name));
    const message = await refusal(directory);
    for (const part of [directory, name, words]) expect(message).toContain(part);
  });

  test('an empty shard, and a link that leads nowhere, are named', async () => {
    const directory = await sharded();
    const shard = join(directory, 'model-00001-of-00003.safetensors');
    await writeFile(shard, '');
    expect(await refusal(directory)).toContain(`${shard}: file size is 0 bytes`);
    await rm(shard);
    await symlink('nowhere', shard);
    expect(await refusal(directory)).toContain(`${shard}: cannot be opened: No such file`);
  });

  test('a directory that is none is named', async () => {
    const directory = join(await temporaryDirectory(), 'model');
    expect(await refusal(directory)).toContain(join(directory, 'config.json'));
    await writeFile(directory, '');
    expect(await refusal(directory)).toContain(join(directory, 'config.json'));
  });

  test('links into a store of blobs are followed, as a download cache lays them out', async () => {
    const root = await temporaryDirectory();
    const snapshot = join(root, 'snapshots', '1a2b');
    await mkdir(join(root, 'blobs'), { recursive: true });
    await mkdir(snapshot, { recursive: true });
    const names = [1, 2, 3].map((shard) => `model-0000${shard}-of-00003.safetensors`);
    for (const [index, name] of ['config.json', indexName, ...names].entries()) {
      await cp(join(fixtures, 'qwen3_moe', name), join(root, 'blobs', `${index}`));
      await symlink(join('..', '..', 'blobs', `${index}`), join(snapshot, name));
    }
    await openDirectory(snapshot);
  });
});

describe('what Git LFS left in place of a file is said by name', () => {
  test.each(['config.json', 'model.safetensors', indexName])('%s', async (name) => {
    const directory = await writeCheckpoint(smallTensors());
    const file = join(directory, name);
    await writeFile(file, pointer);
    expect(await refusal(directory)).toBe(
      `${file}: is a Git LFS pointer and not the file that it stands for; fetch it: git lfs pull`,
    );
  });

  test('a shard', async () => {
    const directory = await sharded();
    await writeFile(join(directory, 'model-00002-of-00003.safetensors'), pointer);
    expect(await refusal(directory)).toContain('model-00002-of-00003.safetensors: is a Git LFS pointer');
  });
});

/** A quantization_config of compressed-tensors. */
function compressed(weights: Record<string, unknown>) {
  const group = { num_bits: 4, type: 'int', strategy: 'group', group_size: 32, symmetric: true, ...weights };
  return {
    quant_method: 'compressed-tensors',
    format: 'pack-quantized',
    config_groups: { all: { weights: group } },
  };
}

describe('a language model', () => {
  test('may be within a model of several parts', async () => {
    const config = { model_type: 'of_several_parts', text_config: smallConfig };
    await openDirectory(await writeCheckpoint(smallTensors(), config));
  });

  test.each(['model.language_model.', 'language_model.model.', ''])(
    'may have the prefix "%s" in front of its layers',
    async (prefix) => {
      const tensors = Object.entries(smallTensors()).map(([name, tensor]) => [
        name.replace('model.', prefix),
        tensor,
      ]);
      await openDirectory(await writeCheckpoint(Object.fromEntries(tensors)));
    },
  );

  test('with another prefix is refused, and that is told', async () => {
    const tensors = Object.entries(smallTensors()).map(([name, tensor]) => [`other.${name}`, tensor]);
    const message = await refusal(await writeCheckpoint(Object.fromEntries(tensors)));
    for (const part of ['is missing', '"other.model.layers.0.', 'another prefix than "model."'])
      expect(message).toContain(part);
  });
});

describe('checkpoints of kinds that are not supported are refused by name', () => {
  test.each([
    ['gptq', { quant_method: 'gptq' }, 'quantization_config.quant_method is "gptq"'],
    ['of no method', { bits: 4 }, 'quantization_config.quant_method is missing'],
    ['fp8 of another format', { quant_method: 'fp8', fmt: 'e5m2' }, 'quantization_config.fmt is "e5m2"'],
    ['integers of 3 bits', compressed({ num_bits: 3 }), 'weights.num_bits is 3'],
    ['a way that is not known', compressed({ strategy: 'token' }), 'weights.strategy is "token"'],
  ])('weights quantised by %s', async (_, quantization, words) => {
    const config = { ...smallConfig, quantization_config: quantization };
    const message = await refusal(await writeCheckpoint(smallTensors(), config));
    expect(message).toContain(words);
    await openDirectory(await writeCheckpoint(smallTensors(), { ...smallConfig, quantization_config: null }));
  });

  test.each([
    `${smallUp}_scale_inv`,
    `${smallUp}_scale`,
    smallUp.replace('.weight', '.scales'),
    `${smallGate}_scales`,
  ])('weights with scales beside them: %s', async (name) => {
    const tensors = smallTensors();
    tensors[name] = { dtype: 'F32', shape: [1], data: new Uint8Array(4) };
    const message = await refusal(await writeCheckpoint(tensors));
    for (const part of ['model.safetensors', `"${name}"`, 'quantised']) expect(message).toContain(part);
  });
});

describe('codes of a quantised checkpoint', () => {
  const config = { ...smallConfig, quantization_config: { quant_method: 'fp8', weight_block_size: [4, 8] } };
  const { ffn, hidden } = small;

  /** The small checkpoint with one matrix in FP8, and its scales, if there are any. */
  function coded(scale: StoredTensor | null) {
    const tensors = smallTensors();
    tensors[smallUp] = { dtype: 'F8_E4M3', shape: [ffn, hidden], data: new Uint8Array(ffn * hidden) };
    if (scale !== null) tensors[`${smallUp}_scale_inv`] = scale;
    return writeCheckpoint(tensors, config);
  }
  const floats = (...shape: number[]): StoredTensor => {
    const count = shape.reduce((product, size) => product * size, 1);
    return { dtype: 'F32', shape, data: new Uint8Array(new Float32Array(count).fill(1).buffer) };
  };

  test('with a scale for each block are loaded', async () => {
    await openDirectory(await coded(floats(2, 2)));
  });

  test.each([
    ['no scales', null, `tensor "${smallUp}_scale_inv" is missing`],
    ['scales of other blocks', floats(1, 1), 'scales for blocks of 4 x 8 of 8 x 16 weights'],
    ['more scales than blocks', floats(2, 3), 'scales for blocks of 4 x 8 of 8 x 16 weights'],
    ['scales of another dtype', { ...floats(2, 2), dtype: 'I32' }, 'dtype is I32; allowed: F32, BF16, F16'],
  ])('with %s are refused by name', async (_, scale, words) => {
    const message = await refusal(await coded(scale));
    expect(message).toContain('model.safetensors');
    expect(message).toContain(words);
  });

  test('without a quantization_config are refused', async () => {
    const directory = await coded(floats(2, 2));
    await writeFile(join(directory, 'config.json'), JSON.stringify(smallConfig));
    expect(await refusal(directory)).toContain('is quantised');
  });
});
