import { describe, expect, test } from '@jest/globals';
import { expertBytesOn } from '../../services/model/device-bytes.js';
import type { LayerSpec } from '../../services/model/spec.js';

const spec = (hidden: number, ffn: number, activation: 'swiglu' | 'gelu', expertBytes = 1) => {
  const expert = { ffn, activation, glu: null, biased: false };
  return { hidden, expertBytes, layers: [{ expert, isolated: null, shared: [] } as unknown as LayerSpec] };
};

describe('what an expert takes of a device', () => {
  test('a CPU keeps it as it is stored', () => {
    expect(expertBytesOn('cpu', spec(4096, 1536, 'swiglu', 18_878_976))).toBe(18_878_976);
  });

  // The sizes of CudaLayout.CountsWhatAnExpertTakesOfTheDevice, native/test/experts_cuda_plan.cc.
  test.each([
    [4096, 1536, 'swiglu', 37_748_736],
    [4096, 16_384, 'gelu', 268_435_456],
    [7168, 2048, 'swiglu', 88_080_384],
    [2880, 2880, 'swiglu', 50_331_648],
    [33, 50, 'swiglu', 13_824],
    [512, 512, 'gelu', 2_097_152],
  ] as const)(
    'a CUDA device has hidden %i, ffn %i, %s in BF16, in pages',
    (hidden, ffn, activation, bytes) => {
      expect(expertBytesOn('cuda:0', spec(hidden, ffn, activation))).toBe(bytes);
    },
  );

  test('the largest of routed, isolated and shared experts counts', () => {
    const { layers, ...rest } = spec(64, 64, 'gelu');
    const shared = [{ ...layers[0]!.expert, ffn: 128, weight: 1, gated: false }];
    expect(expertBytesOn('cuda', { ...rest, layers: [{ ...layers[0]!, shared }] })).toBe(32_768);
    const isolated = { experts: 1, expert: shared[0]!, tokenIds: [7] };
    expect(expertBytesOn('cuda', { ...rest, layers: [{ ...layers[0]!, isolated }] })).toBe(32_768);
  });
});
