import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach } from '@jest/globals';
import type { SwitchyardError } from '../../services/common/errors.js';
import { decodeBf16 } from '../../services/model/bf16.js';
import { SafetensorsFile } from '../../services/model/safetensors.js';

export const fixtures = join(dirname(fileURLToPath(import.meta.url)), '..', 'fixtures');

/** What transformers computed in float32 from a checkpoint's weights; scripts/make-checkpoints.py and make-families.py. */
export async function expectedOf(path: string) {
  const { header } = await SafetensorsFile.open(path);
  const bytes = await readFile(path);
  const bytesOf = (name: string) => {
    const { byteOffset, byteLength } = header.tensors.get(name)!;
    return bytes.subarray(byteOffset, byteOffset + byteLength);
  };
  return {
    names: [...header.tensors.keys()],
    bytes: bytesOf('input'),
    input: decodeBf16(bytesOf('input')),
    tokenIds: header.tensors.has('token_ids')
      ? Uint32Array.from(new BigInt64Array(new Uint8Array(bytesOf('token_ids')).buffer), Number)
      : null,
    floats: (name: string) => Float64Array.from(new Float32Array(new Uint8Array(bytesOf(name)).buffer)),
  };
}

/** An empty directory, removed after the test. */
export async function temporaryDirectory(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'switchyard-model-'));
  directories.push(directory);
  return directory;
}

const directories: string[] = [];
afterEach(async () => {
  for (const directory of directories.splice(0)) await rm(directory, { recursive: true, force: true });
});

/** The bytes of a safetensors file with any header, valid or not. `length`: what stands in front of it. */
export function safetensorsBytes(header: string, data: Uint8Array, length?: bigint): Uint8Array {
  const text = new TextEncoder().encode(header);
  const bytes = new Uint8Array(8 + text.byteLength + data.byteLength);
  new DataView(bytes.buffer).setBigUint64(0, length ?? BigInt(text.byteLength), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.byteLength);
  return bytes;
}

export async function writeSafetensors(path: string, tensors: Record<string, StoredTensor>): Promise<void> {
  let begin = 0;
  const entries = Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
    const end = begin + data.byteLength;
    const entry = { dtype, shape, data_offsets: [begin, end] };
    begin = end;
    return [name, entry];
  });
  const data = Buffer.concat(Object.values(tensors).map((tensor) => tensor.data));
  await writeFile(path, safetensorsBytes(JSON.stringify(Object.fromEntries(entries)), data));
}

/** The error that `action` throws or rejects with. */
export async function failure(action: () => unknown): Promise<SwitchyardError> {
  try {
    await action();
  } catch (error) {
    return error as SwitchyardError;
  }
  throw new Error('nothing was thrown');
}

export interface StoredTensor {
  dtype: string;
  shape: number[];
  data: Uint8Array;
}

/** Sizes of the checkpoint of `smallTensors`: one Mixtral layer. */
export const small = { hidden: 16, ffn: 8, experts: 4, topK: 1 };

export const smallConfig = {
  model_type: 'mixtral',
  hidden_size: small.hidden,
  intermediate_size: small.ffn,
  num_local_experts: small.experts,
  num_experts_per_tok: small.topK,
  num_hidden_layers: 1,
};

const block = 'model.layers.0.block_sparse_moe';
export const smallGate = `${block}.gate.weight`;
export const smallNorm = 'model.layers.0.post_attention_layernorm.weight';
export const smallUp = `${block}.experts.2.w3.weight`;

/** All that the layer needs, in BF16 and with the value 1; to be changed and written by `writeCheckpoint`. */
export function smallTensors(): Record<string, StoredTensor> {
  const { hidden, ffn, experts } = small;
  const ones = (...shape: number[]): StoredTensor => {
    const count = shape.reduce((product, size) => product * size, 1);
    return { dtype: 'BF16', shape, data: new Uint8Array(new Uint16Array(count).fill(0x3f80).buffer) };
  };
  const tensors: Record<string, StoredTensor> = {
    [smallNorm]: ones(hidden),
    [smallGate]: ones(experts, hidden),
  };
  for (let expert = 0; expert < experts; expert++) {
    tensors[`${block}.experts.${expert}.w1.weight`] = ones(ffn, hidden);
    tensors[`${block}.experts.${expert}.w3.weight`] = ones(ffn, hidden);
    tensors[`${block}.experts.${expert}.w2.weight`] = ones(hidden, ffn);
  }
  return tensors;
}

/** A directory with `config.json` and one file of weights, removed after the test. */
export async function writeCheckpoint(
  tensors: Record<string, StoredTensor>,
  config: Record<string, unknown> = smallConfig,
): Promise<string> {
  const directory = join(await temporaryDirectory(), 'model');
  await mkdir(directory);
  await writeFile(join(directory, 'config.json'), JSON.stringify(config));
  await writeSafetensors(join(directory, 'model.safetensors'), tensors);
  return directory;
}
