import type { LayerCopies } from './layer-copies.js';

/** On which hosts the copies of a layer's experts are. */
export class HostSpread {
  /** [experts] Hosts with a copy. */
  readonly hostsOf: Uint32Array;
  /** [experts, hosts] Copies. */
  private readonly counts: Uint32Array;

  /** `hostOf`: [workers] number of its host, below `hosts`. */
  constructor(
    { experts, workersOf }: LayerCopies,
    private readonly hostOf: Uint32Array,
    readonly hosts: number,
  ) {
    this.hostsOf = new Uint32Array(experts);
    this.counts = new Uint32Array(experts * hosts);
    for (const [expert, holders] of workersOf.entries())
      for (const worker of holders) this.count(expert, worker, true);
  }

  /** Copies of an expert on the host of a worker. */
  copiesBeside(expert: number, worker: number): number {
    return this.counts[expert * this.hosts + this.hostOf[worker]!]!;
  }

  /** Whether a copy that moves leaves its expert on as many hosts as before. */
  keeps(expert: number, from: number, to: number): boolean {
    return (
      this.hostOf[from] === this.hostOf[to] ||
      this.copiesBeside(expert, to) === 0 ||
      this.copiesBeside(expert, from) > 1
    );
  }

  /** A copy comes or goes. */
  count(expert: number, worker: number, comes: boolean): void {
    const index = expert * this.hosts + this.hostOf[worker]!;
    if (comes && this.counts[index] === 0) this.hostsOf[expert]! += 1;
    this.counts[index]! += comes ? 1 : -1;
    if (!comes && this.counts[index] === 0) this.hostsOf[expert]! -= 1;
  }
}
