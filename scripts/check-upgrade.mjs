/**
 * A rolling upgrade under load, and back: two coordinators with a lease of etcd, three workers and two routers are replaced one by one by processes of the next minor
 * version, and then by this one again. No batch may fail, and all must have the same answer.
 *   node scripts/check-upgrade.mjs (after npm run bootstrap; etcd in PATH)
 * The next minor version is a copy of this build whose version is one minor higher, and which sends a field that this one does not know with every
 * message of every protocol.
 */
import { spawn } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fixedPort } from '../dist/bench/fixed-port.js';
import { SwitchyardClient } from '../dist/services/client/index.js';
import { until } from './checks.mjs';
import { Load } from './load.mjs';
import { LocalProcesses } from './local-processes.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const scratch = mkdtempSync(join(tmpdir(), 'switchyard-upgrade-'));
const processes = new LocalProcesses();
const node = { rebalanceSeconds: 3_600 };

/** Field 1999 of every message: a text. Messages with rows are no buffers, but know their length and how to copy themselves. */
const unknownField = `
const unknownField = Buffer.from([0xfa, 0x7c, 4, ...Buffer.from('next')]);
function extended(message) {
  if (Buffer.isBuffer(message)) return Buffer.concat([unknownField, message]);
  const length = unknownField.length + message.length;
  const copy = (target, start = 0) => unknownField.copy(target, start) + message.copy(target, start + unknownField.length);
  return { length, byteLength: length, copy };
}
function withUnknownField(definition) {
  for (const service of Object.values(definition))
    for (const method of Object.values(service))
      for (const key of ['requestSerialize', 'responseSerialize']) {
        const serialize = method?.[key];
        if (serialize) method[key] = (message) => extended(serialize(message));
      }
  return definition;
}
`;

/** A build of the next minor version. Returns its folder and version. */
function nextMinor() {
  cpSync(join(root, 'dist'), join(scratch, 'dist'), { recursive: true });
  for (const name of ['native', 'node_modules', 'proto']) symlinkSync(join(root, name), join(scratch, name));
  const description = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const [major, minor] = description.version.split('.');
  const version = `${major}.${Number(minor) + 1}.0`;
  writeFileSync(join(scratch, 'package.json'), JSON.stringify({ ...description, version }));
  const program = join(scratch, 'dist', 'bin');
  const files = readdirSync(program).map((name) => join(program, name));
  const protocol = files.find((file) => readFileSync(file, 'utf8').includes('function loadProtocols()'));
  const source = readFileSync(protocol, 'utf8');
  const patched = source.replace('return definition;', 'return withUnknownField(definition);');
  if (patched === source) throw new Error('protocol.ts is not what it was: nothing is added to its messages');
  writeFileSync(protocol, patched + unknownField);
  return { root: scratch, version };
}

async function startEtcd() {
  const [client, peer] = [await fixedPort(), await fixedPort()].map((port) => `http://127.0.0.1:${port}`);
  const flags = {
    'data-dir': join(scratch, 'etcd'),
    'listen-client-urls': client,
    'advertise-client-urls': client,
  };
  const peers = {
    'listen-peer-urls': peer,
    'initial-advertise-peer-urls': peer,
    'initial-cluster': `default=${peer}`,
  };
  const args = Object.entries({ ...flags, ...peers }).flatMap(([name, value]) => [`--${name}`, value]);
  const etcd = spawn('etcd', args, { stdio: 'ignore' });
  etcd.on('error', () => {});
  await until('etcd answers', () =>
    fetch(`${client}/health`).then(
      ({ ok }) => ok,
      () => false,
    ),
  );
  return { etcd, address: new URL(client).host };
}

async function run(etcd) {
  const present = { root, version: JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version };
  const next = nextMinor();
  const members = [];
  const coordinators = [await fixedPort(), await fixedPort()];
  const coordinator = coordinators.map((port) => `127.0.0.1:${port}`).join(',');
  const lease = { preset: 'tiny', router: false, workers: 3, copies: 2, lease: 'etcd', etcd, ...node };
  for (const [at, port] of coordinators.entries())
    members.push(['coordinator', `coordinator-${at}`, { ...lease, port }]);
  for (const name of ['worker-0', 'worker-1', 'worker-2']) members.push(['worker', name, { coordinator }]);
  for (const name of ['router-0', 'router-1'])
    members.push(['router', name, { coordinator, port: await fixedPort() }]);

  const running = new Map();
  for (const [role, name, flags] of members)
    running.set(name, await processes.start(present.root, role, name, flags));
  const client = await SwitchyardClient.connect(
    ['router-0', 'router-1'].map((name) => running.get(name).address),
  );
  await client.waitUntilReady(60_000, 2);
  const load = await Load.start(client);

  const view = async () => (await client.describeCluster()).view;
  for (const build of [next, present]) {
    for (const [role, name, flags] of members) {
      await load.more(10);
      const before = load.complete;
      const sinceMs = performance.now();
      running.get(name).child.kill('SIGTERM');
      const { code } = await running.get(name).child.exited;
      if (code !== 0) throw new Error(`${name} ended with status ${code}`);
      running.set(name, await processes.start(build.root, role, name, flags));
      await until(`${name} of ${build.version} is ready`, () =>
        isReady(role, running.get(name), view, sinceMs),
      );
      await load.more(10);
      console.log(
        `${name}: ${build.version} after ${((performance.now() - sinceMs) / 1000).toFixed(1)} s, ${load.complete - before} batches meanwhile`,
      );
    }
  }
  await load.stop();
  client.destroy();
  console.log(`${load.complete} batches, 0 failed, the longest ${Math.round(load.longestMs)} ms`);
}

/** A coordinator may stand by; a node must be ready, and every expert served by two workers again. */
async function isReady(role, { name, metricsUrl }, view, sinceMs) {
  if (role === 'coordinator') {
    const { leading } = await (await fetch(`${metricsUrl}/state`)).json();
    return leading || processes.events('follows', { name, sinceMs }).length > 0;
  }
  const { nodes, ready } = await view();
  const isWhole = nodes.every(
    ({ loading, draining, state }) => state === 'DEAD' || (loading === 0 && draining === 0),
  );
  const isThere = nodes.some((one) => one.name === name && one.state === 'READY');
  return ready && isThere && isWhole;
}

const { etcd, address } = await startEtcd();
try {
  await run(address);
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  await processes.stop();
  etcd.kill('SIGKILL');
  rmSync(scratch, { recursive: true, force: true });
}
process.exit();
