import type { ControlService } from '../coordinator/control-service.js';
import type { SimulatedCluster } from './cluster.js';
import type { WorkerNode } from './nodes.js';
import type { SimulatedProcess } from './process.js';

const clockSlack = 0.98;
/** For so long before everybody must have known each other. */
const knownMs = 10_000;

/**
 * A worker that is asked to end serves until no router sends rows to it, or its time is over. `askedMs`: when it was asked. Only what
 * nothing disturbed since then is judged: nobody knows better who can hear whom. `placedMs`: when a coordinator placed experts first.
 */
export function checkDeparture(
  { process: worker, drainMs, wasConnected }: WorkerNode,
  askedMs: number,
  cluster: SimulatedCluster,
  placedMs: (control: ControlService) => number,
): string | null {
  const { leaders, routers, network, time } = cluster;
  const [leader] = leaders;
  if (!wasConnected || time.nowMs - askedMs >= drainMs * clockSlack || leader === undefined) return null;
  const { process, control } = leader;
  const name = worker.name.split('#')[0]!;
  const sinceMs = askedMs - knownMs;
  if (placedMs(control) > sinceMs) return null;
  const isCalm = (other: SimulatedProcess) =>
    other.startedMs < sinceMs &&
    other.brokenMs < sinceMs &&
    other.stoodMs(sinceMs) === 0 &&
    [worker, process].every(({ host }) => !network.wasCut(other.host, host, sinceMs));
  if (![worker, process].every(isCalm)) return null;
  for (const { node } of routers) {
    if (node === null || node.draining || !node.core.cluster.connected || !isCalm(node.process)) continue;
    const { placement } = node.core.cluster;
    const index = placement?.workers.indexOf(name) ?? -1;
    if (index < 0 || placement!.term !== Number(control.view.term)) continue;
    for (const [layer, { workers }] of placement!.copies)
      if (workers.includes(index))
        return `${worker.name} ended ${Math.round(time.nowMs - askedMs)} ms after it was asked to, while ${node.process.name} sent it rows for layer ${layer}`;
  }
  return null;
}
