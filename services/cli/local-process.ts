import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { commandLine, nodeFlags } from '../../native/locate.js';
import { isErrorCode, SwitchyardError } from '../common/errors.js';
import { Deferred } from '../common/lifecycle.js';

export type ProcessRole = 'coordinator' | 'router' | 'worker';

/** What a process tells its parent once it listens. */
export interface Listening {
  address: string;
  metricsUrl: string;
}

export interface Exit {
  code: number | null;
  signal: NodeJS.Signals | null;
}

export type Flags = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** What a command says last when it fails. */
const errorLine = /^switchyard: ([A-Z_]+): (.*)$/;

/** Lines kept of each process, to show when it fails. */
const recentLinesMax = 40;

/** Flags of the command line, as `switchyard` reads them: { metricsPort: 1, router: false } is --metrics-port 1 --no-router. */
export function toArguments(flags: Flags): string[] {
  return Object.entries(flags).flatMap(([key, value]) => {
    const name = key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    if (value === undefined || value === null) return [];
    if (typeof value === 'boolean') return [value ? `--${name}` : `--no-${name}`];
    return [`--${name}=${value}`];
  });
}

/** One service of a local cluster as a child process: its log lines, its addresses, its end. */
export class LocalProcess {
  readonly listening: Promise<Listening>;
  readonly exited: Promise<Exit>;
  readonly recentLines: string[] = [];
  private readonly child: ChildProcess;
  private ended = false;

  constructor(
    readonly role: ProcessRole,
    readonly name: string,
    flags: Flags,
    environment: Readonly<Record<string, string>>,
    onLine: (process: LocalProcess, line: string) => void,
    /** A program, with arguments, that becomes this process's. */
    wrapper: readonly string[] = [],
  ) {
    // A session of its own keeps a terminal's Ctrl-C from it, so that the parent decides the order of shutdown;
    // the channel tells it when the parent is gone, and the parent where it listens.
    const [command, ...args] = [
      ...wrapper,
      process.execPath,
      ...nodeFlags,
      commandLine(),
      role,
      ...toArguments(flags),
    ];
    this.child = spawn(command!, args, {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      env: { ...process.env, ...environment },
      detached: true,
    });
    const listening = new Deferred<Listening>();
    this.listening = listening.promise;
    this.listening.catch(() => {});
    this.child.once('message', (said) => listening.resolve(said as Listening));
    const take = (line: string) => {
      this.recentLines.push(line);
      if (this.recentLines.length > recentLinesMax) this.recentLines.shift();
      onLine(this, line);
    };
    createInterface({ input: this.child.stdout! }).on('line', take);
    createInterface({ input: this.child.stderr! }).on('line', take);
    this.exited = new Promise((resolve) => {
      const finish = (exit: Exit) => {
        this.ended = true;
        listening.reject(this.exitError(exit));
        resolve(exit);
      };
      this.child.once('error', () => finish({ code: null, signal: null }));
      // `close` comes after the last line of output, `exit` may not.
      this.child.once('close', (code, signal) => finish({ code, signal }));
    });
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  get running(): boolean {
    return !this.ended;
  }

  /** The end of this process as an error: the one that it ended with, or INTERNAL with the last thing it said. */
  exitError({ code, signal }: Exit): SwitchyardError {
    const how = signal ? `was ended by ${signal}` : `exited with status ${code}`;
    const [own, message] = this.lastError();
    if (isErrorCode(own)) {
      const details = { process: this.name, exitCode: code, signal };
      return new SwitchyardError(own, `${this.name} ${how}: ${message}`, details);
    }
    const last = this.recentLines.findLast((line) => !line.startsWith('{')) ?? lastReason(this.recentLines);
    return new SwitchyardError('INTERNAL', `${this.name} ${how}${last ? `: ${last}` : ''}`, {
      process: this.name,
      exitCode: code,
      signal,
    });
  }

  /** Whether it ended for a fault of its own. A signal may end it while it does: what it has said counts. */
  failed({ code }: Exit): boolean {
    return (code !== null && code !== 0) || isErrorCode(this.lastError()[0]);
  }

  /** Code and message. */
  private lastError(): (string | undefined)[] {
    return (
      this.recentLines
        .map((line) => errorLine.exec(line))
        .findLast(Boolean)
        ?.slice(1) ?? []
    );
  }

  kill(signal: NodeJS.Signals): void {
    if (!this.ended) this.child.kill(signal);
  }

  /** Asks the process to end and ends it after `graceMs`. Resolves with how it ended. */
  async stop(graceMs: number, signal: NodeJS.Signals = 'SIGTERM'): Promise<Exit> {
    this.kill(signal);
    const timer = setTimeout(() => this.kill('SIGKILL'), graceMs);
    const exit = await this.exited;
    clearTimeout(timer);
    return exit;
  }

  /** The most memory the process ever had resident; null once it has ended. */
  peakRssBytes(): number | null {
    return peakRssBytes(this.pid);
  }
}

/** VmHWM of a process on Linux; null elsewhere, or if there is no such process. */
export function peakRssBytes(pid: number): number | null {
  try {
    const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
    return match ? Number(match[1]) * 1024 : null;
  } catch {
    return null;
  }
}

/** A log line of a service as an object; null for other output. */
export function parseLine(line: string): Record<string, unknown> | null {
  if (!line.startsWith('{')) return null;
  try {
    return JSON.parse(line) as Record<string, unknown>;
  } catch {
    return null;
  }
}

function lastReason(lines: readonly string[]): string | null {
  const last = lines.map(parseLine).findLast((line) => line?.level === 'error' || line?.level === 'fatal');
  const text = (last?.err as { message?: string } | undefined)?.message ?? last?.reason ?? last?.event;
  return text === undefined ? null : String(text);
}
