import { isGated } from './limits.js';
import type { FfnSpec, ModelSpec } from './spec.js';

const mebibyte = 1024 * 1024;

type FfnSizes = Pick<FfnSpec, 'ffn' | 'activation' | 'latent'>;
interface LayerSizes {
  expert: FfnSizes;
  isolated: { expert: FfnSizes } | null;
  shared: readonly FfnSizes[];
}

/**
 * What the largest expert takes of a device's memory, in bytes. CPUs keep weights as they are stored; CUDA devices have them in BF16,
 * padded and rounded up as `expert_bytes` of native/src/experts/cuda/layout.h says. `device`: "cpu" or "cuda", with or without a number.
 */
export function expertBytesOn(
  device: string,
  {
    hidden,
    layers,
    expertBytes,
  }: Pick<ModelSpec, 'hidden' | 'expertBytes'> & { layers: readonly LayerSizes[] },
): number {
  if (!isCuda(device)) return expertBytes;
  const sizes = layers.flatMap(({ expert, isolated, shared }) =>
    [expert, ...(isolated === null ? [] : [isolated.expert]), ...shared].map(({ ffn, latent = hidden }) => {
      const elements = padded(latent) * padded(ffn) * (isGated(expert.activation) ? 3 : 2);
      return granted(2 * elements);
    }),
  );
  return Math.max(...sizes);
}

export const isCuda = (device: string) => device.startsWith('cuda');

/** What a worker tells of its device. */
export interface DeviceRoom {
  memoryBytes: number;
  /** Null: not measured. */
  loadBytesPerSecond: number | null;
}

/** The same in bytes as the checkpoint stores them, by which plans count every expert. An expert has `stored` of them, and takes `held` of the device. */
export function inStoredBytes(
  { memoryBytes, loadBytesPerSecond }: DeviceRoom,
  stored: number,
  held: number,
): DeviceRoom {
  if (held === stored) return { memoryBytes, loadBytesPerSecond };
  return {
    memoryBytes: Math.floor(memoryBytes / held) * stored,
    loadBytesPerSecond: loadBytesPerSecond && (loadBytesPerSecond / held) * stored,
  };
}

/** Rows begin at 16 bytes. */
const padded = (elements: number) => Math.ceil(elements / 8) * 8;

/** Large pieces of a device's memory come in pages of 2 MiB. */
function granted(bytes: number): number {
  const step = bytes < mebibyte ? 512 : 2 * mebibyte;
  return Math.ceil(bytes / step) * step;
}
