import { copyFile, cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { createLogger } from '../../services/common/log.js';
import { FiniteWeights } from '../../services/model/finite.js';
import { openModel } from '../../services/model/load.js';
import { SafetensorsFile } from '../../services/model/safetensors.js';
import { failure, fixtures, temporaryDirectory } from './support.js';

const checkpoint = join(fixtures, 'families', 'nemotron_h-latent');
const open = (directory = checkpoint) => openModel({ kind: 'checkpoint', directory });

describe('experts between linear maps', () => {
  test('are counted by their own matrices, with shared ones in parts of their size, and the maps once a layer', async () => {
    const { spec, close } = await opened();
    // Hidden 32, latent 20, 16 neurons; shared experts have 24.
    expect(spec.expertBytes).toBe(2 * 2 * 16 * 20);
    expect(spec.latentBytes).toBe(2 * (2 * 2 * 20 * 32));
    expect(spec.layers[0]!.expert).toMatchObject({ ffn: 16, latent: 20 });
    expect(spec.layers[0]!.shared.map(({ ffn, latent }) => [ffn, latent])).toEqual([
      [10, undefined],
      [10, undefined],
      [4, undefined],
    ]);
    close();
  });

  test('are refused by the name of the map that has values that are not finite', async () => {
    const directory = await temporaryDirectory();
    await cp(checkpoint, directory, { recursive: true });
    const file = join(directory, 'model.safetensors');
    const { header } = await SafetensorsFile.open(file);
    const tensor = 'backbone.layers.0.mixer.fc2_latent_proj.weight';
    const bytes = await readFile(file);
    bytes.set([0xc1, 0xff], header.tensors.get(tensor)!.byteOffset);
    await writeFile(file, bytes);
    const model = await open(directory);
    const source = model.expert(0, 1);
    const backend = native.createCpuBackend({ threads: 1 });
    const expert = await backend.load(source);
    const finite = new FiniteWeights(model.spec.source, createLogger('worker', 'test', 'silent'));
    const error = await failure(() => finite.checkExpert(source, expert.nonFinite));
    expect(error).toMatchObject({ code: 'MODEL_INVALID', details: { tensor, count: 1 } });
    backend.close();
    model.close();
  });

  test('need both maps', async () => {
    const directory = await temporaryDirectory();
    await copyFile(join(checkpoint, 'config.json'), join(directory, 'config.json'));
    const bytes = await readFile(join(checkpoint, 'model.safetensors'));
    const name = 'backbone.layers.2.mixer.fc1_latent_proj.weight';
    bytes.write(name.replace('fc1', 'fcx'), bytes.indexOf(`"${name}"`) + 1, 'latin1');
    await writeFile(join(directory, 'model.safetensors'), bytes);
    const error = await failure(() => open(directory));
    expect(error).toMatchObject({ code: 'MODEL_INVALID' });
    expect(error.message).toContain(name);
  });
});

async function opened() {
  const model = await open();
  return { spec: model.spec, close: () => model.close() };
}
