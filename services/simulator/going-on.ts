import type { SimulatedCluster } from './cluster.js';
import type { RouterNode } from './nodes.js';
import type { SimulatedProcess } from './process.js';

/** Longer than any pause that a router makes before it tries again, or a client before it goes on. */
const idleMsMax = 4_000;

/** Routers that could do something for their batches do it: none waits for what is there. */
export class GoingOn {
  /** What a router had done, and since when it has done nothing. */
  private readonly idle = new Map<SimulatedProcess, { taken: number; sinceMs: number }>();

  constructor(
    private readonly cluster: SimulatedCluster,
    private readonly violated: (what: string) => void,
  ) {}

  check({ process, core }: RouterNode): void {
    const { nowMs } = this.cluster.time;
    const { taken } = process.rows;
    const { sinceMs } = this.idle.get(process) ?? { sinceMs: nowMs };
    const isIdle =
      this.idle.get(process)?.taken === taken &&
      process.state === 'running' &&
      core.batches.liveCount > 0 &&
      core.readiness().ready &&
      core.links.open().every(({ stats }) => stats.bytesOutstanding === 0);
    this.idle.set(process, { taken, sinceMs: isIdle ? sinceMs : nowMs });
    if (isIdle && nowMs - sinceMs > idleMsMax)
      this.violated(
        `${process.name} reaches all experts, and did nothing for ${core.batches.liveCount} batches in ${Math.round(nowMs - sinceMs)} ms`,
      );
  }
}
