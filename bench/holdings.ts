import { readdirSync, readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { builtFile } from '../native/locate.js';
import { type LocalProcess, parseLine } from '../services/cli/local-process.js';
import { Deferred, sleep } from '../services/common/lifecycle.js';

/** What a process has once its garbage is collected and nobody calls it. */
export interface Holdings {
  /** Alive in V8's heap and in buffers. */
  heapMiB: number;
  /** Resident beside V8's heap and in no file: what buffers and native code hold, or held and their allocator keeps. */
  nativeMiB: number;
  descriptors: number;
}

const mebibyte = 2 ** 20;
/** Descriptors count as settled when they have stayed for so long: sockets take a while to close. */
const settledMs = 2_000;
const settleMsMax = 60_000;

/** Asks processes of a cluster that was started with `options` what they hold. */
export class Collector {
  readonly options = {
    environment: { NODE_OPTIONS: nodeOptions() },
    onLine: (process: LocalProcess, line: string) => {
      const said = parseLine(line);
      if (said?.event === 'collected') this.asked.get(process)?.resolve(said as unknown as Collected);
    },
  };
  private readonly asked = new Map<LocalProcess, Deferred<Collected>>();

  holdings(processes: readonly LocalProcess[]): Promise<Holdings[]> {
    return Promise.all(processes.map((process) => this.holdingsOf(process)));
  }

  private async holdingsOf(process: LocalProcess): Promise<Holdings> {
    const descriptors = await settledDescriptors(process);
    const answer = new Deferred<Collected>();
    this.asked.set(process, answer);
    process.kill('SIGUSR2');
    const ended = process.exited.then((exit) => Promise.reject(process.exitError(exit)));
    const { heapBytes, v8Bytes } = await Promise.race([answer.promise, ended]);
    const nativeMiB = anonymousMiBOf(process) - v8Bytes / mebibyte;
    return { heapMiB: heapBytes / mebibyte, nativeMiB, descriptors };
  }
}

/** What bench/collect.ts prints. */
interface Collected {
  heapBytes: number;
  v8Bytes: number;
}

/** All of it that is resident and in no file, with garbage that V8 has not collected. Throws if the process has ended. */
export function anonymousMiBOf(process: LocalProcess): number {
  const status = ofProcess(process, (directory) => readFileSync(`${directory}/status`, 'utf8'));
  return Number(/RssAnon:\s+(\d+)/.exec(status)![1]) / 1024;
}

async function settledDescriptors(process: LocalProcess): Promise<number> {
  const count = () => ofProcess(process, (directory) => readdirSync(`${directory}/fd`).length);
  let last = count();
  let sinceMs = performance.now();
  for (const endMs = sinceMs + settleMsMax; performance.now() < endMs; ) {
    await sleep(100);
    const now = count();
    if (now !== last) sinceMs = performance.now();
    last = now;
    if (performance.now() - sinceMs > settledMs) break;
  }
  return last;
}

function ofProcess<T>({ name, pid }: LocalProcess, read: (directory: string) => T): T {
  try {
    return read(`/proc/${pid}`);
  } catch (error) {
    throw new Error(`${name} has ended`, { cause: error });
  }
}

/** Those of this process, and what makes processes collect when they are asked. */
function nodeOptions(): string {
  const { href } = pathToFileURL(builtFile('bench', 'collect.js'));
  return `${process.env.NODE_OPTIONS ?? ''} --import=${href}`.trim();
}
