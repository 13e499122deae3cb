import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { decodeBf16 } from '../../services/model/bf16.js';
import { openModel } from '../../services/model/load.js';
import { referenceForward, relativeErrors } from '../../services/model/reference.js';
import { type KernelOptions, runKernels } from './kernels.js';
import { expectedOf, fixtures } from './support.js';

const expectedBeside = (family: string) => expectedOf(join(fixtures, `${family}.expected.safetensors`));

const layouts = ['mixtral', 'qwen3_moe', 'qwen3_moe-unnormalised'].flatMap((family) => [
  [family, family],
  [family, `${family}-fused`],
]);

describe.each(layouts)(
  'the float64 reference equals transformers in float32: %s saved as %s',
  (family, directory) => {
    test('the MoE block of every layer alone', async () => {
      const model = await openModel({ kind: 'checkpoint', directory: join(fixtures, directory!) });
      const { input, floats } = await expectedBeside(family!);
      for (const { layer } of model.spec.layers) {
        const options = { layers: [layer], norm: false, residual: false, given: [] };
        const { rows } = await referenceForward(model, input, options);
        const { relativeError, relativeErrorMax } = relativeErrors(
          rows,
          floats(`moe.${layer}`),
          model.spec.hidden,
        );
        expect(relativeError).toBeLessThan(1e-6);
        expect(relativeErrorMax).toBeLessThan(1e-5);
      }
      model.close();
    });

    test('the stack of all layers, x + MoE(RMSNorm(x))', async () => {
      const model = await openModel({ kind: 'checkpoint', directory: join(fixtures, directory!) });
      const { input, floats } = await expectedBeside(family!);
      const layers = model.spec.layers.map(({ layer }) => layer);
      const options = { layers, norm: true, residual: true, given: [] };
      const { rows } = await referenceForward(model, input, options);
      expect(relativeErrors(rows, floats('stack'), model.spec.hidden).relativeError).toBeLessThan(1e-6);
      model.close();
    });
  },
);

/** The bound that BF16 rows between the steps allow. */
const kernelErrorMax = 8e-3;

describe.each(layouts)('the kernels equal transformers in float32: %s saved as %s', (family, directory) => {
  const run = async (options: Partial<KernelOptions>, expected: string) => {
    const model = await openModel({ kind: 'checkpoint', directory: join(fixtures, directory!) });
    const { bytes, floats } = await expectedBeside(family!);
    const start = native.allocateSlab(bytes.byteLength);
    start.view().set(bytes);
    const layers = model.spec.layers.map(({ layer }) => layer);
    const { rows } = await runKernels(model, start, {
      layers,
      norm: true,
      residual: true,
      bias: null,
      ...options,
    });
    model.close();
    return relativeErrors(decodeBf16(rows.view()), floats(expected), model.spec.hidden).relativeError;
  };

  test('the MoE block alone', async () => {
    for (const layer of [0, 2]) {
      const error = await run({ layers: [layer], norm: false, residual: false }, `moe.${layer}`);
      expect(error).toBeLessThan(kernelErrorMax);
    }
  });

  test('the stack of all layers', async () => {
    expect(await run({}, 'stack')).toBeLessThan(kernelErrorMax);
  });
});
