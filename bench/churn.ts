import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { builtFile } from '../native/locate.js';
import { LocalCluster } from '../services/cli/local-cluster.js';
import type { LocalProcess } from '../services/cli/local-process.js';
import { sleep } from '../services/common/lifecycle.js';
import { presets } from '../services/model/synthetic.js';
import type { ChurnTask, ChurnWord } from './churn-client.js';

export interface ChurnOptions {
  transport: 'grpc' | 'ucx';
  /** Clients that come and go, and the processes that they live in. */
  clients: number;
  processes: number;
  /** Of all of them. */
  batches: number;
  /** Further clients, each a process, that are stopped (SIGSTOP) or killed (SIGKILL) in the middle of a batch. */
  stopped: number;
  killed: number;
  clientStallMs: number;
  log: (line: string) => void;
}

/** What a process of the cluster has. */
export interface Holdings {
  /** Under way; of a worker none. */
  batches: number;
  /** Resident, in MiB. */
  rssMiB: number;
  /** Of slabs in use, in MiB. */
  slabsMiB: number;
  descriptors: number;
  /** Of switchyard's own metrics; Node's come and go with what it does. */
  series: number;
}

export interface ChurnReport {
  done: number;
  /** Reasons of batches of clients that come and go; there should be none. */
  failed: string[];
  seconds: number;
  /** How long after the last batch everything was back; null: it was not within the time. */
  backAfterMs: number | null;
  processes: { name: string; before: Holdings; after: Holdings; limit: Holdings }[];
}

/** Tokens of a batch. */
const tokens = 256;
/** How long batches may take to end once their clients have been killed. */
const endMsMax = 60_000;
/** Beside clientStallMs: the server's pings find out that a stopped client's connection is dead. */
const pingsMs = 45_000;

/**
 * Clients come and go at a cluster of real processes, while others are stopped or killed in the middle of their batches. What
 * the cluster's processes hold is measured after a quarter of it all, and at the end, while the stopped clients are still there.
 */
export async function runChurn(options: ChurnOptions): Promise<ChurnReport> {
  const { transport, clientStallMs, log } = options;
  const router = { clientStallMs, transport };
  const cluster = await LocalCluster.start({
    workers: 2,
    routers: 1,
    threads: 1,
    coordinator: { preset: 'tiny', port: 0, metricsPort: 0, ...router },
    router: { port: 0, metricsPort: 0, ...router },
    worker: { port: 0, metricsPort: 0, transport },
    readyTimeoutMs: 60_000,
  });
  const children: ChildProcess[] = [];
  try {
    log('warming up …');
    const some = (count: number) => Math.ceil(count / 4);
    const small = { ...options, batches: some(options.batches), stopped: some(options.stopped) };
    await churn(cluster, { ...small, killed: some(options.killed) }, children);
    for (const child of children.splice(0)) child.kill('SIGKILL');
    const before = await quietHoldings(cluster);
    log('churning …');
    const started = performance.now();
    const { done, failed } = await churn(cluster, options, children);
    const seconds = (performance.now() - started) / 1000;
    log(`${done} batches in ${seconds.toFixed(1)} s; waiting until everything is given back …`);
    return { done, failed, seconds, ...(await settle(cluster, before, clientStallMs)) };
  } finally {
    for (const child of children) child.kill('SIGKILL');
    await cluster.stop();
  }
}

/** Resolves when the clients that come and go are done, and the others, one after the other, stopped or killed. All are in `children`. */
async function churn(
  cluster: LocalCluster,
  { transport, clients, processes, batches, stopped, killed }: ChurnOptions,
  children: ChildProcess[],
): Promise<ChurnWord> {
  const to = { address: cluster.address, transport, hidden: presets.tiny.model.hidden };
  const crowd = Array.from({ length: processes }, () => {
    const task = { ...to, kind: 'crowd', clients: clients / processes, tokens } as const;
    return start({ ...task, batchesOfClient: Math.ceil(batches / clients) }, children);
  });
  const failures: string[] = [];
  const count = stopped + killed;
  for (let index = 0; index < count; index += 1) {
    const { child, word } = start({ ...to, kind: 'lone' }, children);
    failures.push(...(await word).failed);
    child.kill(isStopped(index, stopped, count) ? 'SIGSTOP' : 'SIGKILL');
  }
  const words = await Promise.all(crowd.map(({ word }) => word));
  for (const { child } of crowd) child.kill();
  return {
    done: words.reduce((sum, { done }) => sum + done, 0),
    failed: [...failures, ...words.flatMap(({ failed }) => failed)],
  };
}

/** Spreads `stopped` evenly over `count`; the last is one of them, so that its batch is still under way at the end. */
function isStopped(index: number, stopped: number, count: number): boolean {
  return Math.floor(((index + 1) * stopped) / count) > Math.floor((index * stopped) / count);
}

/** What the cluster holds once no batch is under way. */
async function quietHoldings(cluster: LocalCluster): Promise<Holdings[]> {
  const end = performance.now() + endMsMax;
  for (;;) {
    const all = await holdings(cluster);
    const batches = all.reduce((sum, held) => sum + held.batches, 0);
    if (batches === 0) return all;
    if (performance.now() > end) throw new Error(`${batches} batches of killed clients do not end`);
    await sleep(100);
  }
}

function start(task: ChurnTask, children: ChildProcess[]): { child: ChildProcess; word: Promise<ChurnWord> } {
  const child = fork(builtFile('bench', 'churn-client.js'));
  children.push(child);
  child.send(task);
  const word = Promise.race([
    once(child, 'message').then(([said]) => said as ChurnWord),
    once(child, 'exit').then(([code]) => ({ done: 0, failed: [`a process of clients ended with ${code}`] })),
  ]);
  return { child, word };
}

async function settle(
  cluster: LocalCluster,
  before: Holdings[],
  clientStallMs: number,
): Promise<Pick<ChurnReport, 'backAfterMs' | 'processes'>> {
  const started = performance.now();
  for (;;) {
    const after = await holdings(cluster);
    const processes = cluster.processes.map(({ name }, index) => {
      return { name, before: before[index]!, after: after[index]!, limit: limitOf(before[index]!) };
    });
    const back = processes.every(({ after, limit }) => within(after, limit));
    const elapsed = performance.now() - started;
    if (back || elapsed > clientStallMs + pingsMs) return { backAfterMs: back ? elapsed : null, processes };
    await sleep(500);
  }
}

/** What counts as back: heaps and caches are never just as large again. */
function limitOf({ batches, rssMiB, slabsMiB, descriptors, series }: Holdings): Holdings {
  return {
    batches,
    rssMiB: rssMiB * 1.25 + 64,
    slabsMiB: slabsMiB + 2,
    descriptors: descriptors + 8,
    // Ways to end that no batch of the router had before.
    series: series + 8,
  };
}

function within(held: Holdings, limit: Holdings): boolean {
  return Object.entries(held).every(([key, value]) => value <= limit[key as keyof Holdings]);
}

function holdings(cluster: LocalCluster): Promise<Holdings[]> {
  return Promise.all(cluster.processes.map(holdingsOf));
}

async function holdingsOf(process: LocalProcess): Promise<Holdings> {
  const { metricsUrl } = await process.listening;
  const text = await (await fetch(`${metricsUrl}/metrics`)).text();
  const lines = text.split('\n').filter((line) => line.startsWith('switchyard_'));
  const sample = (name: RegExp) =>
    lines
      .find((line) => name.test(line))
      ?.split(' ')
      .at(-1);
  const status = readFileSync(`/proc/${process.pid}/status`, 'utf8');
  return {
    batches: Number(sample(/^switchyard_batches_live/) ?? 0),
    rssMiB: Number(/VmRSS:\s+(\d+)/.exec(status)![1]) / 1024,
    slabsMiB: Number(sample(/^switchyard_slab_bytes.*state="used"/)!) / 1024 ** 2,
    descriptors: readdirSync(`/proc/${process.pid}/fd`).length,
    series: lines.length,
  };
}

/** A table of what each process held before and after, beside what is allowed. */
export function formatChurn({ done, failed, seconds, backAfterMs, processes }: ChurnReport): string {
  const reasons = new Map<string, number>();
  for (const reason of failed) reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
  const back = backAfterMs === null ? 'NOT BACK' : `back after ${(backAfterMs / 1000).toFixed(1)} s`;
  const rows = processes.flatMap(({ name, before, after, limit }) =>
    (Object.keys(before) as (keyof Holdings)[]).map((what) => {
      const [was, is, allowed] = [before, after, limit].map((held) =>
        held[what].toFixed(what.endsWith('MiB') ? 1 : 0),
      );
      const mark = after[what] <= limit[what] ? '' : '  ABOVE';
      return `${name.padEnd(14)}${what.padEnd(14)}${was!.padStart(10)}${is!.padStart(10)}${allowed!.padStart(10)}${mark}`;
    }),
  );
  return [
    `${done} batches done, ${failed.length} failed, in ${seconds.toFixed(1)} s; ${back}`,
    ...[...reasons].map(([reason, count]) => `  ${count} × ${reason}`),
    `${'PROCESS'.padEnd(14)}${'WHAT'.padEnd(14)}${'BEFORE'.padStart(10)}${'AFTER'.padStart(10)}${'ALLOWED'.padStart(10)}`,
    ...rows,
  ].join('\n');
}
