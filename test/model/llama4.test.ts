import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from '@jest/globals';
import { native, type TensorSource } from '../../native/index.js';
import { openModel } from '../../services/model/load.js';
import { SafetensorsFile } from '../../services/model/safetensors.js';
import { fixtures, type StoredTensor, writeCheckpoint } from './support.js';

const directory = join(fixtures, 'families', 'llama4');

/** Of a tensor [experts, inputs, outputs] of BF16: the columns [first, end) of an expert, as [outputs, inputs]. */
function turned(
  data: Uint8Array,
  shape: readonly number[],
  expert: number,
  first: number,
  end: number,
): StoredTensor {
  const [, inputs, outputs] = shape as [number, number, number];
  const from = new Uint16Array(new Uint8Array(data).buffer);
  const to = new Uint16Array((end - first) * inputs);
  for (let input = 0; input < inputs; input += 1)
    for (let output = first; output < end; output += 1)
      to[(output - first) * inputs + input] = from[(expert * inputs + input) * outputs + output]!;
  return { dtype: 'BF16', shape: [end - first, inputs], data: new Uint8Array(to.buffer) };
}

/** The checkpoint as tools that quantise leave it: the projections of each expert by themselves. */
async function takenApart(): Promise<string> {
  const path = join(directory, 'model.safetensors');
  const file = await SafetensorsFile.open(path);
  const bytes = await readFile(path);
  const tensors: Record<string, StoredTensor> = {};
  for (const { name, dtype, shape, byteOffset, byteLength } of file.header.tensors.values()) {
    const data = bytes.subarray(byteOffset, byteOffset + byteLength);
    const [, layer, projection] = /^(.*\.experts)\.(gate_up|down)_proj$/.exec(name) ?? [];
    if (layer === undefined) {
      tensors[name] = { dtype, shape: [...shape], data };
      continue;
    }
    const [experts, , outputs] = shape as [number, number, number];
    const parts = projection === 'down' ? ['down'] : ['gate', 'up'];
    const width = outputs / parts.length;
    for (let expert = 0; expert < experts; expert += 1)
      for (const [index, part] of parts.entries())
        tensors[`${layer}.${expert}.${part}_proj.weight`] = turned(
          data,
          shape,
          expert,
          index * width,
          (index + 1) * width,
        );
  }
  file.close();
  return writeCheckpoint(tensors, JSON.parse(await readFile(join(directory, 'config.json'), 'utf8')));
}

async function bytesOf(source: TensorSource): Promise<Buffer> {
  const slab = await native.readTensor(source);
  const bytes = Buffer.from(slab.view());
  slab.release();
  return bytes;
}

test('llama4 has the same experts where each has tensors of its own', async () => {
  const [whole, apart] = await Promise.all(
    [directory, await takenApart()].map((each) => openModel({ kind: 'checkpoint', directory: each })),
  );
  expect(apart!.spec.layers).toEqual(whole!.spec.layers);
  for (const { layer, experts } of whole!.spec.layers)
    for (let expert = 0; expert < experts; expert += 1) {
      const [one, other] = [whole!.expert(layer, expert), apart!.expert(layer, expert)];
      for (const matrix of ['gate', 'up', 'down'] as const)
        expect((await bytesOf(other[matrix]!)).equals(await bytesOf(one[matrix]!))).toBe(true);
    }
  whole!.close();
  apart!.close();
});
