import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { LocalProcess } from '../../services/cli/local-process.js';
import type { RowsReader, SwitchyardClient, SwitchyardError } from '../../services/client/index.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';
import { openFiles } from '../support/sockets.js';

const kills = 30;
/** Caches, pools and V8's heap have nearly their size by then. */
const warmUpKills = 10;
/** What is compared are the least figures of so many kills: what waits for the garbage collector comes and goes. */
const windowKills = 10;
/**
 * Of the process's own memory, which is not slabs: it grew by 2 to 5 MiB, as V8's heap does. A message has 2 MiB, and dozens
 * are on their way at a kill.
 */
const memoryMiBMax = 24;
/** As many as one at every second kill: links that are being made and lost have some. */
const filesMax = (kills - warmUpKills) / 2;
/** Least figures of ten kills were 3 to 6; views wait for the garbage collector. */
const slabsMax = 4;

/** Rows are long and experts small, so that nearly all time goes into the transfer of messages of 2 MiB. */
const hidden = 4096;
const model = { preset: 'tiny', hidden, ffn: 32, experts: 4, topK: 2, layers: 2 };
const chunkTokens = 256;
/** The batch is this block over and over, so that each of its answers is known from those to the block. */
const blockTokens = 1024;
const block = Buffer.from(testRows(blockTokens, hidden).buffer);
const rowBytes = hidden * 2;

/** `count` rows from token `first` on, of a block that repeats. */
function repeated(rows: Buffer, first: number, count: number): Buffer {
  const from = (first % blockTokens) * rowBytes;
  const part = rows.subarray(from, from + count * rowBytes);
  const missing = count - part.length / rowBytes;
  return missing === 0 ? part : Buffer.concat([part, repeated(rows, 0, missing)]);
}

/** It is under way when its worker dies. */
const long: RowsReader = {
  tokens: 6 * blockTokens,
  hidden,
  read: (first, count) => repeated(block, first, count),
};

const transport = 'ucx';
const started: LocalProcess[] = [];
const byName = (cluster: TestCluster, name: string) =>
  started.find((process) => process.name === name) ?? cluster.process(name);

afterAll(() => Promise.all(started.map((process) => process.stop(5_000))));

/** One more worker: it takes a share, or the experts of the next one that dies. */
function startSpare(cluster: TestCluster, index: number): void {
  const name = `spare-${index}`;
  const flags = { coordinator: cluster.address, name, port: 0, metricsPort: 0, threads: 1, transport };
  started.push(new LocalProcess('worker', name, flags, {}, () => {}));
}

async function servingWorkers(client: SwitchyardClient): Promise<string[]> {
  const { view } = await client.describeCluster();
  return view!.nodes.filter(({ serving, state }) => serving > 0 && state !== 'DEAD').map(({ name }) => name);
}

/** The answers to the block, which are the same bits whoever computes them. */
async function answers(client: SwitchyardClient): Promise<Buffer> {
  const call = await client.forward(block, { feedback: false, chunkTokens });
  return Buffer.from((await call.collect()).rows.buffer);
}

/** Kills the worker in the middle of a batch. Every answer must be right; resolves with how the batch ended, and how soon. */
async function killDuring(client: SwitchyardClient, victim: LocalProcess, delayMs: number, expected: Buffer) {
  const call = await client.forward(long, { sequences: 16, feedback: false, chunkTokens });
  let killedAt = 0;
  let answered = 0;
  let error: SwitchyardError | null = null;
  try {
    for await (const { first, count, rows } of call) {
      answered += count;
      expect(repeated(expected, first, count).equals(rows)).toBe(true);
      if (killedAt > 0) continue;
      await sleep(delayMs);
      victim.kill('SIGKILL');
      killedAt = performance.now();
    }
    expect(answered).toBe(long.tokens);
  } catch (thrown) {
    error = thrown as SwitchyardError;
  }
  expect(killedAt).toBeGreaterThan(0);
  return { error, seconds: (performance.now() - killedAt) / 1000 };
}

async function resources(cluster: TestCluster) {
  const router = cluster.process('router-0');
  const { metricsUrl } = await router.listening;
  const state = (await (await fetch(`${metricsUrl}/state`)).json()) as {
    slabs: { slabs: number; bytesInUse: number; bytesCached: number };
    budget: { used: number };
    links: { bytesOutstanding: number }[];
  };
  const status = readFileSync(`/proc/${router.pid}/status`, 'utf8');
  const ownKiB = Number(/^RssAnon:\s+(\d+) kB/m.exec(status)![1]);
  return {
    memoryMiB: ownKiB / 1024,
    slabs: state.slabs.slabs,
    bytesReserved: state.budget.used,
    bytesOutstanding: state.links.reduce((sum, { bytesOutstanding }) => sum + bytesOutstanding, 0),
  };
}

/** Descriptors of the router when it has forgotten the workers that are gone: the memory of these stays mapped for some seconds. */
async function quietFiles(cluster: TestCluster): Promise<number> {
  const { pid } = cluster.process('router-0');
  let fewest = Number.POSITIVE_INFINITY;
  for (const end = performance.now() + 8_000; performance.now() < end; await sleep(100))
    fewest = Math.min(fewest, openFiles(pid).length);
  return fewest;
}

/** Token batches that the router sent again since its start. */
async function retriesOf(cluster: TestCluster): Promise<number> {
  const { metricsUrl } = await cluster.process('router-0').listening;
  const text = await (await fetch(`${metricsUrl}/metrics`)).text();
  return Number(/^switchyard_retries_total{.*} (\d+)$/m.exec(text)![1]);
}

type Resources = Awaited<ReturnType<typeof resources>>;

/** The least of a figure over a window of kills. */
const least = (seen: readonly Resources[], from: number, figure: keyof Resources) =>
  Math.min(...seen.slice(from, from + windowKills).map((now) => now[figure]));

(native.ucx === null ? test.skip : test)(
  `${kills} workers killed in the middle of transfers: every batch is answered as it would have been, and the router keeps nothing`,
  async () => {
    const cluster = await startCluster({
      workers: 2,
      routers: 1,
      coordinator: { ...model, router: false },
      worker: { transport },
      router: { transport },
    });
    const { client } = cluster;
    const expected = await answers(client);
    startSpare(cluster, 0);
    const seen: Resources[] = [];
    let secondsMax = 0;
    let filesBefore = 0;
    for (let kill = 1; kill <= kills; kill += 1) {
      const holders = await servingWorkers(client);
      const victim = holders[kill % holders.length]!;
      const { error, seconds } = await killDuring(client, byName(cluster, victim), (kill * 7) % 23, expected);
      // What was on its way to the victim goes to the worker that loads its experts.
      expect(error).toBeNull();
      secondsMax = Math.max(secondsMax, seconds);
      startSpare(cluster, kill);
      await client.waitUntilReady(20_000);
      expect((await answers(client)).equals(expected)).toBe(true);
      seen.push(await resources(cluster));
      if (kill === warmUpKills) filesBefore = await quietFiles(cluster);
    }
    expect(cluster.process('router-0').running).toBe(true);
    expect(await retriesOf(cluster)).toBeGreaterThan(kills / 2);
    // Silence would be noticed after half a minute.
    expect(secondsMax).toBeLessThan(20);
    const last = kills - windowKills;
    const grown = (figure: keyof Resources) => least(seen, last, figure) - least(seen, warmUpKills, figure);
    expect((await quietFiles(cluster)) - filesBefore).toBeLessThan(filesMax);
    expect(grown('slabs')).toBeLessThanOrEqual(slabsMax);
    expect(grown('memoryMiB')).toBeLessThan(memoryMiBMax);
    expect(least(seen, last, 'bytesReserved')).toBe(0);
    expect(least(seen, last, 'bytesOutstanding')).toBe(0);
  },
  900_000,
);
