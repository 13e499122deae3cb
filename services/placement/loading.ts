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

/** Counts what is to be loaded. */
export class Loading {
  copies = 0;
  bytes = 0;
  /** Of copies of experts that serve already. */
  private readonly limited = { bytes: 0, seconds: 0 };
  private readonly bytesOf: Float64Array;

  constructor(private readonly input: Pick<PlanInput, 'workers' | 'limits'>) {
    this.bytesOf = new Float64Array(input.workers.length);
  }

  /** `serves`: the expert has another copy. `copies`: 1, or -1 for one that is not loaded after all. */
  add(worker: number, expertBytes: number, serves: boolean, copies: 1 | -1 = 1): void {
    this.copies += copies;
    this.bytes += copies * expertBytes;
    this.bytesOf[worker]! += copies * expertBytes;
    if (!serves) return;
    const { loadBytesPerSecond } = this.input.workers[worker]!;
    this.limited.bytes += copies * expertBytes;
    this.limited.seconds += copies * (copySeconds + expertBytes / loadBytesPerSecond);
  }

  /** Until all are there, as the coordinator gives workers what is to load, and with the rates at which they load. */
  get seconds(): number {
    if (this.copies <= 0) return 0;
    const { workers, limits } = this.input;
    let busiest = 0;
    for (const [worker, bytes] of this.bytesOf.entries())
      busiest = Math.max(busiest, bytes / workers[worker]!.loadBytesPerSecond);
    const { bytes, seconds } = this.limited;
    return Math.max(bytes / limits.bytesPerSecond, seconds / limits.loads, copySeconds + busiest);
  }
}

/** What is to be loaded until every copy of `target` is there. */
export function loadingOf(input: PlanInput, target: Copies): Loading {
  const loading = new Loading(input);
  for (const [layer, { expertBytes }] of input.layers.entries())
    for (const [expert, before] of input.present[layer]!.entries())
      for (const worker of target[layer]![expert]!)
        if (!before.includes(worker)) loading.add(worker, expertBytes, before.length > 0);
  return loading;
}
