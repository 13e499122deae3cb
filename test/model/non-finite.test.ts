import { cp, open } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { createLogger } from '../../services/common/log.js';
import { FiniteWeights } from '../../services/model/finite.js';
import { createGate } from '../../services/model/gate.js';
import { type Model, openModel } from '../../services/model/load.js';
import { SafetensorsFile } from '../../services/model/safetensors.js';
import { failure, fixtures, temporaryDirectory } from './support.js';

/** A copy of a family's checkpoint in which the first element of a tensor is NaN. */
async function spoiled(family: string, tensor: string): Promise<{ directory: string; file: string }> {
  const directory = join(await temporaryDirectory(), family);
  await cp(join(fixtures, 'families', family), directory, { recursive: true });
  const file = join(directory, 'model.safetensors');
  const weights = await SafetensorsFile.open(file);
  const { dtype, byteOffset } = weights.entry(tensor);
  weights.close();
  const handle = await open(file, 'r+');
  await handle.write(Buffer.from(dtype === 'F32' ? [0, 0, 0xc0, 0x7f] : [0xc0, 0x7f]), 0, null, byteOffset);
  await handle.close();
  return { directory, file };
}

async function loadGate(model: Model): Promise<unknown> {
  const [layer] = model.spec.layers;
  const source = model.gate(layer!.layer);
  const weight = await native.readFloats(source.weight);
  return createGate(source, layer!, model.spec.hidden, { weight, isolated: null, sharedGate: null });
}

describe('a value that is not finite is said by the tensor that holds it', () => {
  test.each([
    ['deepseek_v3', 'model.layers.1.mlp.gate.e_score_correction_bias'],
    ['gpt_oss', 'model.layers.0.mlp.router.bias'],
    ['gemma4', 'model.layers.0.router.scale'],
    ['gemma4', 'model.layers.0.router.per_expert_scale'],
  ])('beside a gate: %s, %s', async (family, tensor) => {
    const { directory, file } = await spoiled(family, tensor);
    const model = await openModel({ kind: 'checkpoint', directory, allowNonFiniteWeights: true });
    const error = await failure(() => loadGate(model));
    expect(error).toMatchObject({ code: 'MODEL_INVALID', details: { file, tensor, count: 1 } });
    expect(error.message).toContain('allowed: finite numbers');
    model.close();
  });

  test.each([
    ['gpt_oss', 'model.layers.0.mlp.experts.down_proj_bias'],
    ['gpt_oss', 'model.layers.0.mlp.experts.gate_up_proj_bias'],
  ])('of an expert: %s, %s', async (family, tensor) => {
    const { directory, file } = await spoiled(family, tensor);
    const source = { kind: 'checkpoint', directory } as const;
    const model = await openModel(source);
    const backend = native.createCpuBackend({ threads: 1 });
    const finite = new FiniteWeights(source, createLogger('test', 'test', 'silent'));
    const expert = model.expert(0, 0);
    const { nonFinite } = await backend.load(expert);
    const error = await failure(() => finite.checkExpert(expert, nonFinite));
    expect(error).toMatchObject({ code: 'MODEL_INVALID', details: { file, tensor, count: 1 } });
    backend.close();
    model.close();
  });
});
