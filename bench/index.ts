import { invalidArgument } from '../services/common/errors.js';
import { balanceGroups } from './balance.js';
import { balanceClusterGroups } from './balance-cluster.js';
import { benchCluster, clusterCases } from './cluster.js';
import { benchDeviceCluster, deviceCases } from './device-cluster.js';
import { expertGroups } from './experts.js';
import { benchHosts, hostCases } from './hosts.js';
import { benchTimeline } from './hosts-timeline.js';
import { benchKernels } from './kernels.js';
import { latencyGroups } from './latency.js';
import { layerGroups } from './layer.js';
import { linkGroups } from './link.js';
import { moveGroups } from './moves.js';
import { packedExpertGroups } from './packed-experts.js';
import { closePeers } from './peer.js';
import { benchPlane } from './plane.js';
import { type BenchOptions, type BenchReport, type BenchResult, formatResult, machine } from './report.js';
import { tracingGroups } from './tracing.js';
import { trafficGroups } from './traffic.js';

/** What can be measured, by the name or the beginning of the name of its figures. */
const groups: Record<string, (options: BenchOptions) => Promise<BenchResult[]>> = {
  kernels: benchKernels,
  ...linkGroups,
  plane: benchPlane,
  ...expertGroups,
  ...packedExpertGroups,
  ...layerGroups,
  ...latencyGroups,
  ...balanceGroups,
  ...balanceClusterGroups,
  ...trafficGroups,
  ...tracingGroups,
  ...moveGroups,
  ...Object.fromEntries(
    clusterCases.map((test) => [
      test.id,
      async (options: BenchOptions) => [await benchCluster(test, options)],
    ]),
  ),
  ...Object.fromEntries(
    deviceCases.map((test) => [test.id, (options: BenchOptions) => benchDeviceCluster(test, options)]),
  ),
  ...Object.fromEntries(
    hostCases.map((test) => [test.id, (options: BenchOptions) => benchHosts(test, options)]),
  ),
  'hosts/overlap': benchTimeline,
};

/** Measures a group (`kernels`, `cluster`, `cluster/seed`, …) or, with null, everything, one after another. */
export async function runBench(group: string | null, options: BenchOptions): Promise<BenchReport> {
  const chosen = Object.keys(groups).filter(
    (name) => group === null || name === group || name.startsWith(`${group}/`),
  );
  if (chosen.length === 0) throw invalidArgument('group', group, Object.keys(groups).join(', '));
  const results: BenchResult[] = [];
  for (const name of chosen) {
    options.log(`measuring ${name} …`);
    const measured = await groups[name]!(options).finally(closePeers);
    for (const result of measured) {
      options.log(formatResult(result));
      results.push(result);
    }
  }
  return { machine: machine(), results };
}
