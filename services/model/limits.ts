import { z } from 'zod';
import type { Activation } from '../../native/index.js';

/**
 * Bounds of every model, checked before memory is taken for it. They lie above all models known; a value beyond
 * them is a broken or hostile configuration.
 */
export const modelLimits = {
  hidden: 65_536,
  ffn: 1_048_576,
  experts: 4096,
  topK: 64,
  layers: 1024,
  vocabulary: 16_777_216,
  /** BF16 bytes of one expert. */
  expertBytes: 16 * 1024 ** 3,
} as const;

/** An integer from 1 to `max`. Its message is what is allowed, for errors that name key and value beside it. */
export function size(max: number): z.ZodType<number> {
  return z.custom<number>(
    (value) => Number.isSafeInteger(value) && (value as number) >= 1 && (value as number) <= max,
    {
      error: `an integer from 1 to ${max}`,
    },
  );
}

/** Whether an FFN has a third matrix, as a gate. */
export function isGated(activation: Activation): boolean {
  return activation === 'swiglu' || activation === 'geglu';
}

/** BF16 bytes of one expert's own matrices. */
export function expertWeightBytes(sizes: {
  hidden: number;
  latent?: number;
  ffn: number;
  activation: Activation;
}): number {
  return (sizes.latent ?? sizes.hidden) * sizes.ffn * 2 * (isGated(sizes.activation) ? 3 : 2);
}
