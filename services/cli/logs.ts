import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { quoted, SwitchyardError } from '../common/errors.js';
import { makeDirectory } from '../common/make-directory.js';
import { namesOf } from './local-cluster.js';
import { type LocalProcess, parseLine } from './local-process.js';

export interface ProcessLogs {
  write(process: LocalProcess, line: string): void;
  close(): Promise<void>;
}

export interface LogOptions {
  logDirectory: string | null;
  workers: number;
  routers: number;
}

/**
 * A file per process in the directory; null: the lines are dropped (the last ones are kept by each process). Throws CONFIG_INVALID
 * for one that cannot be written. Lines that cannot be written later on are lost, with one warning.
 */
export async function openLogs({ logDirectory, ...cluster }: LogOptions): Promise<ProcessLogs> {
  if (logDirectory === null) return { write: () => {}, close: async () => {} };
  const files = new Map<string, LogFile>();
  const close = async () => {
    await Promise.all([...files.values()].map((file) => file.close()));
  };
  let warned = false;
  const warn = (path: string, error: Error) => {
    if (!warned) process.stderr.write(`switchyard: ${path} lacks lines of the log: ${error.message}\n`);
    warned = true;
  };
  try {
    await makeDirectory(logDirectory);
    for (const name of namesOf(cluster)) {
      const path = join(logDirectory, `${name}.log`);
      files.set(name, new LogFile(await open(path, logFlags), (error) => warn(path, error)));
    }
  } catch (error) {
    await close();
    throw unusable(logDirectory, error as Error);
  }
  return { write: ({ name }, line) => files.get(name)?.write(line), close };
}

/** Anew; a pipe that nobody reads is refused, and does not wait for a reader. */
const logFlags = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NONBLOCK;

function unusable(directory: string, { message }: Error): SwitchyardError {
  const value = quoted(directory);
  const allowed = `a directory whose files can be written (${message})`;
  const text = `logDirectory is ${value}; allowed: ${allowed}`;
  return new SwitchyardError('CONFIG_INVALID', text, { key: 'logDirectory', value, allowed });
}

/** Writes lines in their order, those that come meanwhile at once. */
class LogFile {
  private waiting = '';
  private writing: Promise<void> | null = null;

  constructor(
    private readonly handle: FileHandle,
    private readonly onLost: (error: Error) => void,
  ) {}

  write(line: string): void {
    this.waiting += `${line}\n`;
    this.writing ??= this.flush();
  }

  async close(): Promise<void> {
    await this.writing;
    await this.handle.close().catch(this.onLost);
  }

  private async flush(): Promise<void> {
    while (this.waiting !== '') {
      const text = this.waiting;
      this.waiting = '';
      await this.handle.writeFile(text).catch(this.onLost);
    }
    this.writing = null;
  }
}

const shownElsewhere = new Set(['level', 'time', 'role', 'name', 'pid', 'event']);

/** A log line for people: time, process, event, fields. Lines that are no JSON stay as they are. */
export function readable(name: string, line: string): string {
  const said = parseLine(line);
  if (!said) return `${name.padEnd(11)} ${line}`;
  const time = String(said.time).slice(11, 23);
  const level = said.level === 'info' ? '' : ` ${String(said.level).toUpperCase()}`;
  const fields = Object.entries(said)
    .filter(([key]) => !shownElsewhere.has(key))
    .map(([key, value]) => ` ${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`);
  return `${time} ${name.padEnd(11)}${level} ${said.event ?? said.msg ?? ''}${fields.join('')}`;
}
