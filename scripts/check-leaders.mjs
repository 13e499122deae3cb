/**
 * Two coordinators and a lease: the one that leads is killed (SIGKILL) while batches run through a router of its own, three times over. The other must
 * lead within 10 s, no batch may fail, and no expert may move. What the coordinators need for their lease are the arguments:
 *   node scripts/check-leaders.mjs --lease=etcd --etcd=127.0.0.1:2379
 *   node scripts/check-leaders.mjs --lease=kubernetes --topology=kubernetes --hosts=node-a,node-b (with KUBECONFIG)
 * Prints what each change took and, with a topology, the hosts that the coordinator knows: those of the workers must be among them.
 */
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fixedPort } from '../dist/bench/fixed-port.js';
import { SwitchyardClient } from '../dist/services/client/index.js';
import { Load } from './load.mjs';
import { LocalProcesses } from './local-processes.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const limitMs = 10_000;
const changes = 3;
const text = { type: 'string' };
const { values } = parseArgs({
  options: {
    lease: text,
    'lease-name': text,
    etcd: text,
    topology: text,
    hosts: { ...text, default: 'host-a,host-b' },
  },
});
const { lease, 'lease-name': leaseName, etcd, topology } = values;
const hosts = values.hosts.split(',');
const processes = new LocalProcesses();

const startCoordinator = (name, port) => {
  const model = { preset: 'tiny', router: false, workers: hosts.length, rebalanceSeconds: 3_600 };
  return processes.start(root, 'coordinator', name, { ...model, port, lease, leaseName, etcd, topology });
};

async function showTopology({ metricsUrl }) {
  const { topology: known } = await (await fetch(`${metricsUrl}/state`)).json();
  console.log(`topology: ${JSON.stringify(known.hosts)}`);
  const names = known.hosts.map(({ name }) => name);
  if (!hosts.every((host) => names.includes(host)))
    throw new Error(`the topology has ${names}, not ${hosts}`);
}

/** Kills the leader and starts it again as one that stands by. Resolves with who leads then. */
async function change(coordinators, leader, load) {
  const before = load.complete;
  await load.more(20);
  const { child, port } = coordinators.get(leader);
  const sinceMs = performance.now();
  child.kill('SIGKILL');
  const leads = await processes.event('leads', { sinceMs });
  const ready = await processes.event('ready', { sinceMs });
  await load.more(20);
  const took = ({ atMs }) => `${((atMs - sinceMs) / 1000).toFixed(1)} s`;
  console.log(
    `killed ${leader}: ${leads.name} leads after ${took(leads)} in term ${leads.term}, with all nodes after ${took(ready)}; ${load.complete - before} batches meanwhile`,
  );
  if (leads.atMs - sinceMs > limitMs) throw new Error(`allowed: ${limitMs} ms until another leads`);
  coordinators.set(leader, await startCoordinator(leader, port));
  await processes.event('follows', { name: leader, sinceMs });
  return leads.name;
}

async function run() {
  const coordinators = new Map();
  for (const name of ['a', 'b']) coordinators.set(name, await startCoordinator(name, await fixedPort()));
  const coordinator = [...coordinators.values()].map(({ address }) => address).join(',');
  for (const [at, topologyHost] of hosts.entries())
    await processes.start(root, 'worker', `w${at}`, { coordinator, topologyHost });
  const router = await processes.start(root, 'router', 'r', { coordinator });
  const client = await SwitchyardClient.connect(router.address);
  await client.waitUntilReady(60_000);
  let leader = (await processes.event('leads')).name;
  if (topology !== undefined) await showTopology(coordinators.get(leader));
  const load = await Load.start(client);
  for (let at = 0; at < changes; at += 1) leader = await change(coordinators, leader, load);
  await load.stop();
  client.destroy();
  const loads = processes.events('experts-loaded').length;
  console.log(`${load.complete} batches, 0 failed, the longest ${Math.round(load.longestMs)} ms`);
  if (loads !== hosts.length)
    throw new Error(`experts were loaded ${loads} times by ${hosts.length} workers`);
}

try {
  await run();
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  await processes.stop();
}
process.exit();
