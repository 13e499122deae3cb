import type { ExpertCopies } from '../native/index.js';

/** Copies of experts of which each has one. `workerOf`: by expert. */
export function oneCopyEach(workerOf: Uint32Array): ExpertCopies {
  return {
    offsets: Uint32Array.from({ length: workerOf.length + 1 }, (_, expert) => expert),
    workers: workerOf,
  };
}
