import { type ChildProcessByStdio, execFile, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { promisify } from 'node:util';
import { packageRoot } from '../native/locate.js';
import { torchPython } from './peers/torch.js';

type Log = (line: string) => void;

/** Peers that wait for questions, which keeps this process from ending. */
const open = new Set<Peer>();

/** Ends the peers of a benchmark that is over, or has failed. */
export function closePeers(): void {
  for (const peer of open) peer.close();
}

/**
 * Another implementation in a process of its own. Once it has loaded it says "ready" and what it can do; from then on it
 * answers every line with a line, so that it takes turns with what it is measured beside. It ends with its
 * benchmark.
 */
export class Peer {
  private readonly lines: AsyncIterator<string>;
  private ready = '';

  private constructor(
    private readonly name: string,
    private readonly process: ChildProcessByStdio<Writable, Readable, null>,
    /** How the process ended. */
    private readonly ended: Promise<string>,
  ) {
    this.lines = createInterface({ input: process.stdout })[Symbol.asyncIterator]();
  }

  /** Null, with a line in the log that says why, if the peer does not start. */
  static async start(name: string, command: string, args: string[], log: Log): Promise<Peer | null> {
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    const ended = new Promise<string>((resolve) => {
      child.once('error', (error) => resolve(error.message));
      child.once('exit', (code, signal) => resolve(`it ended with ${signal ?? `status ${code}`}`));
    });
    // A peer that has ended is seen where its answer is missing.
    child.stdin.on('error', () => {});
    const peer = new Peer(name, child, ended);
    open.add(peer);
    const first = await Promise.race([peer.lines.next(), ended]);
    if (typeof first === 'object' && !first.done && first.value.startsWith('ready')) {
      peer.ready = first.value;
      return peer;
    }
    // One that says something else would wait for questions.
    peer.close();
    const words =
      typeof first === 'object' && !first.done ? `it said "${first.value}" instead of "ready"; ` : '';
    log(`${name} is left out: ${command} ${args[0]}: ${words}${await ended}`);
    return null;
  }

  /** What the peer said of itself when it was ready. */
  can(what: string): boolean {
    return this.ready.split(' ').includes(what);
  }

  /** A number for an answer: seconds, or what the question asks for. */
  async ask(...question: (string | number)[]): Promise<number> {
    this.process.stdin.write(`${question.join(' ')}\n`);
    const answer = await this.lines.next();
    if (answer.done) this.close();
    const what = answer.done ? await this.ended : `it answered "${answer.value}"`;
    const value = answer.done ? Number.NaN : Number(answer.value);
    if (!(value > 0)) throw new Error(`${this.name} gave no figure for "${question.join(' ')}": ${what}`);
    return value;
  }

  /** The peer ends when its input does. */
  close(): void {
    open.delete(this);
    this.process.stdin.end();
  }
}

/** A script of bench/peers; null, with a line in the log, where Python or its packages are missing. */
export async function startPython(
  name: string,
  script: string,
  args: string[],
  log: Log,
): Promise<Peer | null> {
  const python = torchPython();
  if (python === null) {
    log(
      `${name} is left out: neither .venv nor SWITCHYARD_PEERS has an environment; bench/peers/install.sh makes it`,
    );
    return null;
  }
  return Peer.start(name, python, [join(packageRoot(), 'bench', 'peers', script), ...args], log);
}

/**
 * A program of native/bench: one in the folder that SWITCHYARD_BENCH_PROGRAMS names, otherwise built first if anything changed,
 * in a folder of native/ with options of CMake.
 */
export async function startNative(
  program: string,
  args: string[],
  log: Log,
  { build: folder, options }: { build: string; options: string[] } = { build: 'build-bench', options: [] },
): Promise<Peer> {
  const built = process.env.SWITCHYARD_BENCH_PROGRAMS;
  const path = built ? join(built, program) : await buildNative(program, folder, options);
  const peer = await Peer.start(program, path, args, log);
  if (!peer) throw new Error(`${program} does not run`);
  return peer;
}

async function buildNative(program: string, folder: string, options: string[]): Promise<string> {
  const source = join(packageRoot(), 'native');
  const build = join(source, folder);
  const run = promisify(execFile);
  await run('cmake', ['-S', source, '-B', build, '-DSWITCHYARD_BENCH=ON', ...options]);
  await run('cmake', ['--build', build, '--target', program]);
  return join(build, 'bench', program);
}
