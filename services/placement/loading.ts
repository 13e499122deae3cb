import type { Copies, PlanInput } from './input.js';

/** How fast copies of experts that serve already may be loaded; others are loaded at once. */
export interface LoadLimits {
  /** At once. */
  loads: number;
  bytesPerSecond: number;
}

/** Those of a coordinator that is not told others. */
export const usualLimits: Readonly<LoadLimits> = { loads: 8, bytesPerSecond: 256 * 1024 * 1024 };

/** From the order to the placement that tells routers of a copy, beside its bytes: messages, reports, an epoch. Taken for all, as nobody measures it. */
const copySeconds = 0.25;

export interface Loading {
  copies: number;
  bytes: number;
  /** Until all are there, as the coordinator gives workers what is to load, and with the rates at which they load. */
  seconds: number;
}

/** What is to be loaded until every copy of `target` is there. */
export function loadingOf({ workers, layers, present, limits }: PlanInput, target: Copies): Loading {
  let copies = 0;
  const limited = { bytes: 0, seconds: 0 };
  const ofWorker = workers.map(() => 0);
  for (const [layer, { expertBytes }] of layers.entries()) {
    for (const [expert, before] of present[layer]!.entries()) {
      for (const worker of target[layer]![expert]!) {
        if (before.includes(worker)) continue;
        copies += 1;
        ofWorker[worker]! += expertBytes;
        if (before.length === 0) continue;
        limited.bytes += expertBytes;
        limited.seconds += copySeconds + expertBytes / workers[worker]!.loadBytesPerSecond;
      }
    }
  }
  const busiest = Math.max(...ofWorker.map((bytes, worker) => bytes / workers[worker]!.loadBytesPerSecond));
  return {
    copies,
    bytes: ofWorker.reduce((sum, bytes) => sum + bytes, 0),
    seconds: Math.max(
      limited.bytes / limits.bytesPerSecond,
      limited.seconds / limits.loads,
      copies === 0 ? 0 : copySeconds + busiest,
    ),
  };
}
