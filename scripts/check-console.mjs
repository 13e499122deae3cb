/**
 * The console of a real cluster: how soon it shows that a worker was killed. Then the console at 64 workers × 58 layers × 256 experts: a real coordinator, to whose control streams this process speaks as 64 workers and
 * 4 routers do, and Chromium. Frames are counted while the page takes changes, and while at each frame another layer is chosen.
 * `--screenshots DIR` takes pictures for the docs too: node scripts/check-console.mjs [--screenshots DIR] (after npm run bootstrap)
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';
import { LocalCluster } from '../dist/services/cli/local-cluster.js';
import { LocalProcess } from '../dist/services/cli/local-process.js';
import { ControlSession } from '../dist/services/common/control-session.js';
import { coordinatorDialer } from '../dist/services/common/grpc-duplex.js';
import { createLogger } from '../dist/services/common/log.js';
import { packUint32 } from '../dist/services/common/packed.js';
import { nativeRuntime } from '../dist/services/runtime/native.js';

const size = { hosts: 8, workersOfHost: 8, routers: 4, layers: 58, experts: 256 };
const framesPerSecondMin = 30;
const deathMsMax = 2_000;
const { screenshots } = parseArgs({ options: { screenshots: { type: 'string' } } }).values;
const log = createLogger('console-check', 'console-check', 'error');
const until = async (check) => {
  while (!(await check())) await new Promise((resolve) => setTimeout(resolve, 50));
};

function session(coordinator, hello, report, onMessage = () => {}) {
  return new ControlSession({
    ...{ coordinators: [coordinator], token: null, dial: coordinatorDialer(null) },
    ...{ runtime: nativeRuntime, log, hello, report, onMessage, reportMs: 500, leaseMs: 10_000 },
  });
}

/** Holds what it is told to, a little later, and computes at a steady pace. */
function worker(coordinator, index) {
  const host = `host-${Math.floor(index / size.workersOfHost)}`;
  const held = { version: 0, experts: [], told: 0 };
  let rowsComputed = 0;
  const report = () => {
    const readyChanged = held.told !== held.version;
    held.told = held.version;
    rowsComputed += 40_000 + (index % 7) * 2_000;
    const rows = { rowsQueued: (index * 37) % 900, rowsComputed, computeSeconds: rowsComputed / 90_000 };
    const machine = {
      bytesInFlight: 0,
      eventLoopUtilization: 0.05 + (index % 5) / 50,
      rssBytes: 6e9 + index * 1e7,
    };
    return {
      worker: {
        ...rows,
        ...machine,
        ready: readyChanged ? held.experts : [],
        readyChanged,
        assignment: held.version,
      },
    };
  };
  const identity = { role: 'WORKER', name: `worker-${index}`, host, device: 'cuda:0', threads: 1 };
  const hello = {
    ...identity,
    address: `10.0.${host.slice(5)}.${index + 1}:7080`,
    pid: 1000 + index,
    memoryBytes: 2 ** 36,
  };
  return session(
    coordinator,
    { ...hello, linkSecret: Buffer.alloc(32, index + 1) },
    report,
    ({ assignment }) => {
      if (assignment)
        Object.assign(held, { version: Number(assignment.version), experts: assignment.experts });
    },
  );
}

/** Some experts are hot, others in each layer, and change with time. */
function loadOf(layer, step) {
  const counts = Uint32Array.from({ length: size.experts }, (_, expert) => {
    const rank = (expert * 97 + layer * 41) % size.experts;
    return Math.round((9_000 / (rank + 12)) * (1 + 0.3 * Math.sin(step / 7 + expert)));
  });
  return { layer, rows: packUint32(counts), steered: packUint32(counts) };
}

function router(coordinator, index) {
  let step = 0;
  const workers = Array.from({ length: size.hosts * size.workersOfHost }, (_, at) => `worker-${at}`);
  const report = () => {
    step += 1;
    const loads = Array.from({ length: size.layers }, (_, layer) => loadOf(layer, step));
    const bytes = (at) => step * 1_000_000 * (1 + ((at + index * 3) % 9));
    const traffic = workers.map((name, at) => ({
      worker: name,
      bytesSent: bytes(at),
      bytesReturned: bytes(at) * 0.9,
    }));
    const batches = [0, 1, 2].map((at) => {
      const age = (step + at * 13) % 40;
      return {
        batchId: `prefill-${index}${at}-${Math.floor((step + at * 13) / 40)}`,
        tokens: 262_144,
        tokensAnswered: age * 6_500,
        seconds: age / 2,
      };
    });
    const links = workers.map((name, at) => {
      const isNear = Math.floor(at / size.workersOfHost) === index;
      return {
        worker: name,
        transport: 'UCX',
        lanes: isNear ? 'mapped sysv' : 'rc_mlx5',
        reason: 'both ends have UCX and reach each other by it',
      };
    });
    const described = { linksChanged: step === 1, links: step === 1 ? links : [] };
    const figures = { batchesLive: 3, batches, traffic };
    return {
      router: {
        loads,
        tokens: 9_000,
        bytesInFlight: 3e8,
        eventLoopUtilization: 0.2,
        rssBytes: 2e9,
        ...described,
        figures,
      },
    };
  };
  const identity = {
    role: 'ROUTER',
    name: `router-${index}`,
    host: `host-${index}`,
    device: 'cpu',
    threads: 8,
    pid: 900 + index,
  };
  return session(
    coordinator,
    { ...identity, address: `10.0.${index}.200:7070`, memoryBytes: 2 ** 30, messageBytesMax: 2 ** 24 },
    report,
  );
}

/** Frames that the page shows in so many seconds, and how long the longest and the 99th of 100 took. `each` is done at every frame. */
function countFrames(page, seconds, each) {
  return page.evaluate(
    ([seconds, each]) =>
      new Promise((resolve) => {
        const map = document.querySelector('.overview [role=application]');
        const times = [];
        const shown = new Set();
        const frame = (time) => {
          times.push(time);
          shown.add(document.querySelector('.detail h3').textContent);
          const key = each && Math.floor(times.length / 57) % 2 === 0 ? 'ArrowRight' : 'ArrowLeft';
          if (each) map.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
          if (time - times[0] < seconds * 1000) return void requestAnimationFrame(frame);
          const gaps = times
            .slice(1)
            .map((one, at) => one - times[at])
            .sort((a, b) => a - b);
          const at = (share) => gaps[Math.floor((gaps.length - 1) * share)];
          resolve({
            framesPerSecond: (gaps.length * 1000) / (time - times[0]),
            p99Ms: at(0.99),
            maxMs: at(1),
            layers: shown.size,
          });
        };
        requestAnimationFrame(frame);
      }),
    [seconds, each],
  );
}

/** Share of ten seconds in which the coordinator's event loop is busy. */
async function busyShare(metricsUrl) {
  const read = async () => {
    const text = await (await fetch(`${metricsUrl}/metrics`)).text();
    const [, seconds] = /^switchyard_event_loop_busy_seconds_total\{.*\} (.*)$/m.exec(text);
    return { seconds: Number(seconds), atMs: performance.now() };
  };
  const before = await read();
  await new Promise((resolve) => setTimeout(resolve, 10_000));
  const after = await read();
  return ((after.seconds - before.seconds) * 1000) / (after.atMs - before.atMs);
}

const percent = (share) => `${(share * 100).toFixed(1)} %`;

const show = (name, { framesPerSecond, p99Ms, maxMs }) =>
  process.stdout.write(
    `${name}: ${framesPerSecond.toFixed(1)} frames/s, a frame ${p99Ms.toFixed(0)} ms (p99), ${maxMs.toFixed(0)} ms (longest)\n`,
  );

/** With a plan, and some copies under way to where it wants them. */
async function takeScreenshots(browser, url, directory) {
  const planner = await browser.newPage();
  await planner.goto(url);
  await planner.getByText(/^The last plan would load/).waitFor({ timeout: 180_000 });
  await planner.getByRole('button', { name: 'Rebalance' }).click();
  await planner.getByRole('dialog').getByRole('button', { name: 'Rebalance' }).click();
  await planner.getByText(/ copies to load, /).waitFor({ timeout: 180_000 });
  await planner.close();
  for (const [name, colorScheme, viewport] of [
    ['console-light', 'light', { width: 1440, height: 1320 }],
    ['console-dark', 'dark', { width: 1440, height: 1320 }],
    ['console-narrow', 'light', { width: 420, height: 1500 }],
  ]) {
    const page = await browser.newPage({ viewport, colorScheme });
    await page.goto(url);
    await page.waitForSelector('.overview [role=application]');
    await page.waitForTimeout(2_000);
    if (viewport.width > 1000)
      await page.locator('.detail [role=application]').hover({ position: { x: 480, y: 205 } });
    await page.screenshot({ path: join(directory, `${name}.png`) });
    await page.close();
  }
}

/** Milliseconds from a worker's death to its sight. */
async function timeDeath(browser) {
  const node = { port: 0, metricsPort: 0 };
  const processes = { coordinator: { preset: 'tiny', ...node }, router: node, worker: node };
  const counts = { workers: 3, routers: 0, threads: 1, readyTimeoutMs: 60_000 };
  const cluster = await LocalCluster.start({ ...processes, ...counts, onLine: () => {} });
  try {
    const page = await browser.newPage();
    await page.goto(`${cluster.metricsUrl}/console/`);
    const row = page.locator('.nodes tbody tr').filter({ hasText: 'worker-2' });
    await row.getByText('ready').waitFor();
    const killedAtMs = performance.now();
    cluster.processes.find(({ name }) => name === 'worker-2').kill('SIGKILL');
    await row.getByText('dead').waitFor();
    return performance.now() - killedAtMs;
  } finally {
    await cluster.stop();
  }
}

const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] });
const deathMs = await timeDeath(browser);
process.stdout.write(`a worker killed with SIGKILL is shown dead after ${deathMs.toFixed(0)} ms\n`);

const model = { layers: size.layers, experts: size.experts, topK: 8, hidden: 7168, ffn: 2048 };
const flags = {
  ...model,
  port: 0,
  metricsPort: 0,
  router: false,
  workers: size.hosts * size.workersOfHost,
  rebalanceSeconds: 0,
  leaseMs: 10_000,
};
const coordinator = new LocalProcess('coordinator', 'coordinator', flags, {}, () => {});
const { address, metricsUrl } = await coordinator.listening;
const sessions = [];
for (let index = 0; index < size.hosts * size.workersOfHost; index += 1)
  sessions.push(worker(address, index));
for (let index = 0; index < size.routers; index += 1) sessions.push(router(address, index));
// A connection that the server has just closed for want of use is no failure.
await until(() =>
  fetch(`${metricsUrl}/readyz`).then(
    ({ ok }) => ok,
    () => false,
  ),
);

const unwatched = await busyShare(metricsUrl);
let failed = deathMs > deathMsMax;
try {
  const page = await browser.newPage({ viewport: { width: 1440, height: 1100 } });
  const wire = { bytes: 0 };
  await page.goto(`${metricsUrl}/console/`);
  await page.waitForSelector('.overview [role=application]');
  const network = await page.context().newCDPSession(page);
  await network.send('Network.enable');
  network.on('Network.dataReceived', ({ dataLength }) => {
    wire.bytes += dataLength;
  });
  await page.waitForTimeout(2_000);
  const watched = await busyShare(metricsUrl);
  wire.bytes = 0;
  const watching = await countFrames(page, 10, false);
  const choosing = await countFrames(page, 10, true);
  process.stdout.write(
    `64 workers × ${size.layers} layers × ${size.experts} experts, ${size.routers} routers\n`,
  );
  show('while it watches', watching);
  show('while another layer is chosen at each frame', choosing);
  if (choosing.layers !== size.layers) throw new Error(`only ${choosing.layers} layers were shown`);
  process.stdout.write(`changes: ${(wire.bytes / 20 / 1000).toFixed(0)} kB/s\n`);
  process.stdout.write(
    `event loop of the coordinator: ${percent(unwatched)} busy without a page, ${percent(watched)} with one\n`,
  );
  failed ||= Math.min(watching.framesPerSecond, choosing.framesPerSecond) < framesPerSecondMin;
  if (screenshots) await takeScreenshots(browser, `${metricsUrl}/console/`, screenshots);
} finally {
  await browser.close();
  for (const one of sessions) await one.leave('the check is over');
  await coordinator.stop(5_000);
}
process.exit(failed ? 1 : 0);
