import { version } from '../../common/version.js';
import type { ModelSpec } from '../../model/spec.js';
import type { Cluster } from '../cluster.js';
import {
  type ClusterSummary,
  type ConsoleBatch,
  type ConsoleLink,
  type ConsoleNode,
  type ConsoleState,
  copyStates,
  type LinkRates,
  type PackedLoads,
} from './wire.js';

/** What is measured by looking twice. */
export interface Rates {
  /** By role and name: rows a second. */
  rows: ReadonlyMap<string, number>;
  /** By router and worker. */
  links: ReadonlyMap<string, LinkRates>;
}

export const nodeKey = (role: unknown, name: unknown) => `${role}/${name}`;
export const linkKeyOf = (router: string, worker: string) => `${router} ${worker}`;

/** Numbers as the page shows them: what nobody could see is no change. */
export const rounded = (value: number) => Number(value.toPrecision(3));

/** Why a coordinator does not lead, and where to look instead. */
type NotLeading = Pick<ClusterSummary, 'reason' | 'leaderUrl'>;

export function summary(coordinator: string, model: ModelSpec, source: Cluster | NotLeading): ClusterSummary {
  const layers = model.layers.map(({ layer, experts }) => ({ layer, experts }));
  const known = { coordinator, version, model: { name: model.name, layers } };
  const none = { loading: 0, serving: 0, draining: 0, planned: 0 };
  if ('reason' in source) {
    const nothing = { term: 0, epoch: 0, workers: [], copies: none, missing: 0, plan: null };
    return { ...known, ...nothing, ...source, leading: false, ready: false };
  }
  const { view, plans, term, epoch } = source;
  const copies = { ...none };
  for (const counts of plans.placement.counts())
    for (const state of ['loading', 'serving', 'draining'] as const) copies[state] += counts[state];
  copies.planned = plans.placement.plannedCount();
  const plan = plans.outlook && {
    copiesToLoad: plans.outlook.copiesToLoad,
    secondsToLoad: rounded(plans.outlook.secondsToLoad),
    netGainSeconds: rounded(plans.outlook.netGainSeconds),
  };
  return {
    ...known,
    leading: true,
    leaderUrl: '',
    ready: view.ready ?? false,
    reason: view.reason ?? '',
    term,
    epoch,
    workers: [...plans.placement.names],
    copies,
    missing: plans.started ? plans.placement.missing().length : 0,
    plan,
  };
}

/** Of every node and link, and the batches under way. */
export function describeNodes(
  cluster: Cluster,
  rates: Rates,
): Pick<ConsoleState, 'nodes' | 'links' | 'traffic' | 'batches'> {
  const figures = new Map(cluster.figures().map((one) => [nodeKey(one.role, one.name), one]));
  const nodes: Record<string, ConsoleNode> = {};
  const links: Record<string, ConsoleLink> = {};
  const batches: Record<string, ConsoleBatch> = {};
  for (const node of cluster.view.nodes ?? []) {
    const { name = '', host = '', address = '', device = '', pid = 0, reason = '' } = node;
    const { loading = 0, serving = 0, draining = 0 } = node;
    const key = nodeKey(node.role, name);
    const own = figures.get(key);
    nodes[key] = {
      role: node.role === 'ROUTER' ? 'ROUTER' : 'WORKER',
      name,
      host,
      address,
      device,
      pid,
      state: String(node.state),
      reason,
      mark: String(node.mark),
      loading,
      serving,
      draining,
      memoryBytes: Number(node.memoryBytes ?? 0),
      rssBytes: rounded(Number(own?.rssBytes ?? 0)),
      eventLoop: Math.round(Number(own?.eventLoopUtilization ?? 0) * 100) / 100,
      rowsQueued: Number(own?.rowsQueued ?? 0),
      rowsPerSecond: rounded(rates.rows.get(key) ?? 0),
    };
    for (const { worker = '', transport, lanes = '', reason = '' } of node.links ?? [])
      links[linkKeyOf(name, worker)] = { router: name, worker, transport: String(transport), lanes, reason };
  }
  for (const { hello, alive, batches: underWay } of cluster.members()) {
    if (hello.role !== 'ROUTER' || !alive) continue;
    for (const { batchId, tokens, tokensAnswered, seconds } of underWay.batches)
      batches[`${hello.name} ${batchId}`] = {
        router: hello.name,
        batch: batchId,
        tokens,
        answered: tokensAnswered,
        seconds: Math.round(seconds * 10) / 10,
      };
  }
  return { nodes, links, traffic: Object.fromEntries(rates.links), batches };
}

/** Of every layer: where its copies are and shall be. */
export function describeCopies({ experts, plans }: Cluster): ConsoleState['copies'] {
  const copies: ConsoleState['copies'] = {};
  for (const { layer } of experts.layers) {
    const { first, experts: count } = experts.rangeOf(layer);
    const triples: number[] = [];
    for (let expert = 0; expert < count; expert += 1)
      for (const { slot, state } of plans.placement.slotsOf(first + expert))
        triples.push(expert, slot, copyStates.indexOf(state));
    copies[layer] = packed(Uint16Array.from(triples));
  }
  return copies;
}

/** Of every layer what its experts get. `perSecond`: by number of the expert; null: next to nothing is routed. */
export function describeLoads({ experts }: Cluster, perSecond: Float64Array | null): ConsoleState['loads'] {
  const loads: Record<string, PackedLoads> = {};
  if (perSecond === null) return loads;
  for (const { layer } of experts.layers) {
    const rows = experts.sliceOf(layer, perSecond);
    const peak = rows.reduce((most, one) => Math.max(most, one), 0);
    const scale = peak === 0 ? 0 : 65_535 / peak;
    loads[layer] = {
      peak: rounded(peak),
      rates: packed(Uint16Array.from(rows, (one) => Math.round(one * scale))),
    };
  }
  return loads;
}

const packed = ({ buffer, byteOffset, byteLength }: Uint16Array) =>
  Buffer.from(buffer, byteOffset, byteLength).toString('base64');
