import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { native, type Slab } from '../../native/index.js';
import { decodeBf16 } from '../../services/model/bf16.js';
import { type Model, openModel } from '../../services/model/load.js';
import { referenceForward, relativeErrors } from '../../services/model/reference.js';
import { runKernels } from './kernels.js';
import { expectedOf, fixtures } from './support.js';

/** By scripts/make-families.py. */
const directory = join(fixtures, 'families');

/** The bound that BF16 rows between the steps allow. */
const kernelErrorMax = 8e-3;
/** The reference takes experts' weights in BF16, which is more exact where they are stored so. */
const referenceErrorMax = (family: string) => (storedOtherwise.test(family) ? 4e-3 : 1e-6);
const storedOtherwise = /-(fp8|int|f16|f32)/;

function slabOf(bytes: Uint8Array): Slab {
  const slab = native.allocateSlab(bytes.byteLength);
  slab.view().set(bytes);
  return slab;
}

/** Runs layers by the kernels. */
async function compute(
  model: Model,
  { bytes, tokenIds }: { bytes: Uint8Array; tokenIds: Uint32Array | null },
  layers: number[],
  whole: boolean,
) {
  const options = { layers, norm: whole, residual: whole, bias: null, tokenIds };
  return await runKernels(model, slabOf(bytes), options);
}

describe.each(readdirSync(directory).sort())('%s', (family) => {
  test('computes as transformers does in float32', async () => {
    const model = await openModel({ kind: 'checkpoint', directory: join(directory, family) });
    const { hidden } = model.spec;
    const expected = await expectedOf(join(directory, family, 'expected.safetensors'));
    const { input, tokenIds, names, floats } = expected;
    const layers = model.spec.layers.map(({ layer }) => layer);
    expect(layers.map((layer) => `moe.${layer}`)).toEqual(
      names.filter((name) => name.startsWith('moe')).sort(),
    );
    const errorOf = (rows: Float64Array, name: string) =>
      relativeErrors(rows, floats(name), hidden).relativeError;
    const expectBlock = async (layer: number, name: string, ids: Uint32Array | null) => {
      const bare = { layers: [layer], norm: false, residual: false, given: [], tokenIds: ids };
      const reference = await referenceForward(model, input, bare);
      expect(errorOf(reference.rows, name)).toBeLessThan(referenceErrorMax(family));
      const { rows, routing } = await compute(model, { ...expected, tokenIds: ids }, [layer], false);
      expect(errorOf(decodeBf16(rows.view()), name)).toBeLessThan(kernelErrorMax);
      expect(routing[0]!.experts).toEqual(reference.layers[0]!.experts);
    };
    for (const layer of layers) {
      await expectBlock(layer, `moe.${layer}`, tokenIds);
      const untyped = `untyped.${layer}`;
      if (names.includes(untyped)) await expectBlock(layer, untyped, null);
    }
    if (names.includes('stack')) {
      const { rows } = await compute(model, expected, layers, true);
      expect(errorOf(decodeBf16(rows.view()), 'stack')).toBeLessThan(kernelErrorMax);
    }
    model.close();
  });
});
