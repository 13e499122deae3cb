/**
 * Processes of a cluster over UCX are killed (SIGKILL) while they write to the queue in shared memory that all who write to that process
 * share: there gdb stops them, between the instruction that takes a place in the queue and those that fill it. UCX delivers nothing that comes
 * after such a place. No batch may fail because a worker dies so. Where a client dies so, batches of others may end with ROUTER_LOST, and the next
 * ones must be answered. UCX must be in use again in both cases.
 * Needs gdb, and a UCX with symbols, as Debian's is:
 *   node scripts/check-mid-write.mjs
 */
import { spawn, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SwitchyardClient } from '../dist/services/client/index.js';
import { check, until } from './checks.mjs';
import { Load } from './load.mjs';
import { LocalProcesses } from './local-processes.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const rounds = 3;
const writers = ['uct_mm_ep_am_short', 'uct_mm_ep_am_short_iov', 'uct_mm_ep_am_bcopy'];
const over = { transport: 'ucx' };
const processes = new LocalProcesses();

/** Where, in UCX's functions that write to such a queue, a place is taken: behind the jump that tries again. */
function placesTaken(library) {
  return writers.map((name) => {
    const { stdout } = spawnSync('gdb', ['-batch', '-ex', `disassemble ${name}`, library], {
      encoding: 'utf8',
    });
    const lines = stdout.split('\n');
    const taken = lines.findIndex((line) => line.includes('cmpxchg'));
    const after = lines.slice(taken).findIndex((line) => /\tj/.test(line));
    const offset = taken < 0 ? undefined : /<\+(\d+)>/.exec(lines[taken + after + 1])?.[1];
    if (offset === undefined) throw new Error(`${library}: no place is taken in ${name}\n${stdout}`);
    return `*((char *)&${name}+${offset})`;
  });
}

/** Goes on until the process writes to another: it also writes to itself, to see whether that arrives. */
const toAnother = `import gdb
gdb.execute("continue")
while "Probe::send" in gdb.execute("backtrace", to_string=True): gdb.execute("continue")`;

/** Kills the process at its next write. Resolves when it is dead. */
async function killMidWrite(pid) {
  const library = /\S*libuct\.so\S*/.exec(readFileSync(`/proc/${pid}/maps`, 'utf8'))?.[0];
  if (library === undefined) throw new Error(`process ${pid} does not use UCX`);
  const commands = ['set pagination off', 'handle all nostop noprint pass'];
  commands.push(
    ...placesTaken(library).map((place) => `hbreak ${place}`),
    `python exec(${JSON.stringify(toAnother)})`,
    'kill',
  );
  const gdb = spawn('gdb', ['-batch', '-p', String(pid), ...commands.flatMap((command) => ['-ex', command])]);
  let said = '';
  for (const stream of [gdb.stdout, gdb.stderr]) stream.on('data', (text) => (said += text));
  await new Promise((resolve) => gdb.on('close', resolve));
  if (!/hit .*[Bb]reakpoint|Breakpoint \d+, /.test(said))
    throw new Error(`gdb did not stop ${pid} at a write\n${said}`);
}

const figure = async ({ metricsUrl }, name) => {
  const text = await (await fetch(`${metricsUrl}/metrics`)).text();
  return Number(new RegExp(`^switchyard_${name}(?:{.*})? (\\d+)$`, 'm').exec(text)?.[1]);
};

/** A client in a process of its own, which sends batches for ever. */
function startClient(address) {
  const code = `import { SwitchyardClient } from ${JSON.stringify(join(root, 'dist/services/client/index.js'))};
    import { Load } from ${JSON.stringify(join(root, 'scripts/load.mjs'))};
    const client = await SwitchyardClient.connect(${JSON.stringify(address)}, ${JSON.stringify(over)});
    const load = await Load.start(client);
    await load.more(5);
    console.log('under way');
    await load.more(Number.MAX_SAFE_INTEGER);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  return new Promise((resolve, reject) => {
    child.stdout.once('data', () => resolve(child));
    child.once('exit', (status) => reject(new Error(`the client ended with ${status}`)));
  });
}

const isReadAgain = (router, replaced) =>
  until(
    'what comes over UCX is read again',
    async () => (await figure(router, 'ucx_replaced_workers_total')) === replaced,
  );

async function killWorkers(client, router, joins, workers) {
  const load = await Load.start(client);
  for (let round = 1; round <= rounds; round += 1) {
    const before = load.complete;
    load.longestMs = 0;
    await load.more(20);
    await killMidWrite(workers[0].child.pid);
    await load.more(20);
    await isReadAgain(router, round);
    workers.shift();
    workers.push(await processes.start(root, 'worker', `worker-${round + 1}`, joins));
    await client.waitUntilReady(60_000);
    await load.more(20);
    const batches = `${load.complete - before} batches are answered, the longest in ${(load.longestMs / 1000).toFixed(1)} s`;
    check(`round ${round}: a worker dies as it writes; ${batches}`, true);
  }
  await load.stop();
}

async function killClients(client, router, address) {
  for (let round = 1; round <= rounds; round += 1) {
    const load = await Load.start(client);
    const neighbour = await startClient(address);
    neighbour.removeAllListeners('exit');
    await killMidWrite(neighbour.pid);
    await isReadAgain(router, rounds + round);
    const lost = await load.stop().then(
      () => 'none',
      ({ code }) => code,
    );
    check(
      `round ${round}: a client dies as it writes; errors of another's batches: ${lost}`,
      ['none', 'ROUTER_LOST'].includes(lost),
    );
    const next = await Load.start(client);
    await next.more(20);
    await next.stop();
  }
}

async function run() {
  const model = { preset: 'tiny', router: false, workers: 2, copies: 2, rebalanceSeconds: 3_600 };
  const coordinator = await processes.start(root, 'coordinator', 'coordinator', model);
  const joins = { ...over, coordinator: coordinator.address };
  const router = await processes.start(root, 'router', 'router-0', joins);
  const workers = [];
  for (const name of ['worker-0', 'worker-1'])
    workers.push(await processes.start(root, 'worker', name, joins));
  const client = await SwitchyardClient.connect(coordinator.address, over);
  await client.waitUntilReady(60_000);
  await killWorkers(client, router, joins, workers);
  const retries = await figure(router, 'retries_total');
  await killClients(client, router, coordinator.address);
  check('links to workers went on when clients died', (await figure(router, 'retries_total')) === retries);
  client.close();
}

try {
  await run();
} finally {
  await processes.stop();
}
