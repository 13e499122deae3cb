import { z } from 'zod';
import { readBounded } from '../common/bounded-file.js';
import { invalidArgument, SwitchyardError, shownJson } from '../common/errors.js';
import { checkBy } from '../common/schema-issue.js';
import { shownText } from '../common/shown-text.js';
import { parseYaml } from '../common/yaml.js';

const bitsOf: Readonly<Record<string, number>> = { '': 1, k: 1e3, m: 1e6, g: 1e9, t: 1e12 };

/** Beyond what links are, with room to spare: nothing that is reckoned from it is too large or too small for a number. */
const bandwidthLimits = { min: 1, max: 1e15 } as const;
const bandwidthAllowed = 'bits per second from 1 to 1e15, as in "200Gbit/s" or 25000000000';

/** Bits per second: a number, or a text such as "200Gbit/s", "25 Gbps" or "500Mbit/s". */
const bandwidth = z
  .union([z.number(), z.string()], { error: bandwidthAllowed })
  .transform((value, context) => {
    const bits = typeof value === 'number' ? value : parseBandwidth(value);
    if (bits >= bandwidthLimits.min && bits <= bandwidthLimits.max) return bits;
    context.addIssue({ code: 'custom', message: bandwidthAllowed });
    return z.NEVER;
  });

function parseBandwidth(text: string): number {
  const match = /^\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:bit\/s|bps|bit)\s*$/i.exec(text);
  return match === null ? Number.NaN : Number(match[1]) * bitsOf[match[2]!.toLowerCase()]!;
}

const name = shownText(1, 253);
const latencyAllowed = 'microseconds from 0.001 to 1e9';

/** `what` names the elements: the error says how many of them are allowed. */
function list<Element extends z.ZodType>(element: Element, what: string, min: number, max: number) {
  const error = `a list of ${min} to ${max} ${what}`;
  return z.array(element, { error }).min(min, { error }).max(max, { error });
}

const hostSchema = z.strictObject(
  {
    name,
    /** As workers name their device ("cpu", "cuda:0"); one entry for each worker that shares are dealt to. More of them, as one that takes the place of another, come last. */
    devices: list(name, 'devices', 1, 1024),
  },
  { error: 'a mapping with name and devices' },
);

const linkSchema = z.strictObject(
  {
    from: name,
    to: name,
    bandwidth,
    latencyMicroseconds: z
      .number({ error: latencyAllowed })
      .min(1e-3, { error: latencyAllowed })
      .max(1e9, { error: latencyAllowed })
      .optional(),
  },
  { error: 'a mapping with from, to and bandwidth' },
);

const topologySchema = z.strictObject(
  {
    hosts: list(hostSchema, 'hosts', 1, 4096),
    links: list(linkSchema, 'links', 0, 65_536).default([]),
  },
  { error: 'a mapping with hosts and links' },
);

export interface TopologyHost {
  name: string;
  /** Null: whatever workers there have. */
  devices: readonly string[] | null;
  /** What hosts fail together, from the widest. Empty: it is not known. */
  zone?: string;
  rack?: string;
  /** Hosts whose devices have a fabric of their own, as NVLink. */
  clique?: string;
}

/** The hosts of a cluster, the devices that workers use, and the links between hosts (both directions). */
export interface Topology {
  hosts: readonly TopologyHost[];
  links: z.infer<typeof topologySchema>['links'];
  /** There may be hosts that it does not name yet. */
  grows?: boolean;
}

/** As a file has it: what it does not name does not exist. */
export interface FileTopology extends Topology {
  hosts: readonly (TopologyHost & { devices: readonly string[] })[];
}

/** Far more than that of the largest topology has. */
const fileBytesMax = 16 * 1024 * 1024;

/** Reads and validates a topology file. Throws CONFIG_INVALID that names the file, the key, the value and what is allowed. */
export function readTopology(path: string): FileTopology {
  let text: string;
  try {
    text = readBounded(path, fileBytesMax).toString();
  } catch (error) {
    throw configInvalid(path, 'topology', `cannot be read: ${(error as Error).message}`);
  }
  return parseTopology(text, path);
}

export function parseTopology(text: string, path: string): FileTopology {
  let value: unknown;
  try {
    value = parseYaml(text);
  } catch (error) {
    throw configInvalid(path, 'topology', `is not YAML: ${(error as Error).message}`);
  }
  const { data, issue } = checkBy(topologySchema, value);
  if (issue !== null) {
    const { key, value: seen, allowed } = issue;
    throw configInvalid(path, key || 'topology', `is ${shownJson(seen)}; allowed: ${allowed}`);
  }
  checkReferences(data, path);
  return data;
}

function checkReferences(topology: Topology, path: string): void {
  const hosts = new Set<string>();
  for (const [index, host] of topology.hosts.entries()) {
    if (hosts.has(host.name))
      throw configInvalid(
        path,
        `hosts.${index}.name`,
        `is "${host.name}", which another host has; allowed: unique names`,
      );
    hosts.add(host.name);
  }
  const pairs = new Set<string>();
  for (const [index, link] of topology.links.entries()) {
    for (const end of ['from', 'to'] as const) {
      if (!hosts.has(link[end]))
        throw configInvalid(
          path,
          `links.${index}.${end}`,
          `is "${link[end]}"; allowed: ${[...hosts].join(', ')}`,
        );
    }
    if (link.from === link.to)
      throw configInvalid(
        path,
        `links.${index}.to`,
        `is "${link.to}", the host the link comes from; allowed: another host`,
      );
    const ends = [link.from, link.to].sort();
    const pair = JSON.stringify(ends);
    if (pairs.has(pair)) {
      const problem = `joins ${ends.join(' and ')} again; allowed: one link for two hosts`;
      throw configInvalid(path, `links.${index}`, problem);
    }
    pairs.add(pair);
  }
}

function configInvalid(path: string, key: string, problem: string): SwitchyardError {
  return new SwitchyardError('CONFIG_INVALID', `${path}: ${key} ${problem}`, { file: path, key });
}

/** Where a worker says it runs. */
export interface Place {
  name: string;
  host: string;
  device: string;
}

/** Throws INVALID_ARGUMENT if the topology has no such host, or the host no such device. */
export function checkPlace(topology: Topology, place: Place): void {
  const host = topology.hosts.find((candidate) => candidate.name === place.host);
  if (host === undefined && topology.grows) return;
  if (host === undefined)
    throw invalidArgument(
      'host',
      place.host,
      `a host of the topology: ${topology.hosts.map((h) => h.name).join(', ')}`,
    );
  if (host.devices !== null && !host.devices.includes(place.device))
    throw invalidArgument(
      'device',
      place.device,
      `a device of host ${host.name}: ${host.devices.join(', ')}`,
    );
}

/**
 * The order in which workers take shares of every layer. With a topology: the first device of each host,
 * then the second of each, so that consecutive experts fall on different hosts and every host gets its
 * even part. Without: by name, numbers by value.
 */
export function orderWorkers(places: readonly Place[], topology: Topology | null): string[] {
  const byName = [...places].sort((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }));
  if (topology === null) return byName.map((place) => place.name);
  const taken = new Set<string>();
  const ranked: { name: string; device: number; host: number }[] = [];
  for (const place of byName) {
    const host = topology.hosts.findIndex((candidate) => candidate.name === place.host);
    const device = slotOf(topology.hosts[host], place, (slot) => taken.has(`${host}/${slot}`));
    taken.add(`${host}/${device}`);
    ranked.push({ name: place.name, device: device < 0 ? Number.MAX_SAFE_INTEGER : device, host });
  }
  // The sort is stable: workers beyond the devices listed come last, by name.
  return ranked.sort((a, b) => a.device - b.device || a.host - b.host).map((rank) => rank.name);
}

/** Which of the host's devices a worker has, of those that are not taken; -1: none that is listed. */
function slotOf(host: TopologyHost | undefined, place: Place, isTaken: (slot: number) => boolean): number {
  if (host === undefined) return -1;
  if (host.devices !== null)
    return host.devices.findIndex((id, slot) => id === place.device && !isTaken(slot));
  let slot = 0;
  while (isTaken(slot)) slot += 1;
  return slot;
}

/** Hosts by name, so that each is in another zone than the one before it, and in another rack, as far as there are others. */
export function spreadHosts(hosts: readonly TopologyHost[]): TopologyHost[] {
  const byName = [...hosts].sort((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }));
  return interleaved(byName, [({ zone = '' }) => zone, ({ rack = '' }) => rack]);
}

function interleaved(
  hosts: TopologyHost[],
  [keyOf, ...others]: ((host: TopologyHost) => string)[],
): TopologyHost[] {
  if (keyOf === undefined) return hosts;
  const groups = new Map<string, TopologyHost[]>();
  for (const host of hosts) groups.set(keyOf(host), [...(groups.get(keyOf(host)) ?? []), host]);
  const lists = [...groups.values()].map((group) => interleaved(group, others));
  const longest = Math.max(0, ...lists.map(({ length }) => length));
  return Array.from({ length: longest }, (_, at) => lists.flatMap((list) => list.slice(at, at + 1))).flat();
}
