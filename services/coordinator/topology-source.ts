import type { Logger } from '../common/log.js';
import { KubernetesApi } from '../platform/kubernetes.js';
import { KubernetesNodes } from '../platform/kubernetes-nodes.js';
import type { CoordinatorConfig } from './config.js';
import { readTopology, spreadHosts, type Topology } from './topology.js';

/** Where the topology comes from. */
export interface TopologySource {
  /** Null: none is known. */
  readonly now: Topology | null;
  close(): void;
}

const inCluster = 'kubernetes';

/** The labels of a node that say where it is. */
const zoneLabel = 'topology.kubernetes.io/zone';
const rackLabel = 'topology.kubernetes.io/rack';
const cliqueLabel = 'nvidia.com/gpu.clique';

/** The source that a configuration names. Throws CONFIG_INVALID. */
export async function openTopology({ topology }: CoordinatorConfig, log: Logger): Promise<TopologySource> {
  if (topology !== inCluster) {
    const fixed = topology === null ? null : readTopology(topology);
    return { now: fixed, close: () => {} };
  }
  const nodes = await KubernetesNodes.open(await KubernetesApi.open('topology'), log);
  return {
    get now() {
      return topologyOf(nodes.labels);
    },
    close: () => nodes.close(),
  };
}

/** By name of the node its labels. Workers name their node as their host; what devices they have, they say themselves. */
export function topologyOf(labels: ReadonlyMap<string, Readonly<Record<string, string>>>): Topology {
  const hosts = [...labels].map(
    ([name, { [zoneLabel]: zone, [rackLabel]: rack, [cliqueLabel]: clique }]) => ({
      name,
      devices: null,
      ...(zone !== undefined && { zone }),
      ...(rack !== undefined && { rack }),
      ...(clique !== undefined && { clique }),
    }),
  );
  return { hosts: spreadHosts(hosts), links: [], grows: true };
}
