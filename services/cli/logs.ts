import { constants, createWriteStream, type WriteStream } from 'node:fs';
import { access, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { invalidArgument } from '../common/errors.js';
import { type LocalProcess, parseLine } from './local-process.js';

export interface ProcessLogs {
  write(process: LocalProcess, line: string): void;
  close(): Promise<void>;
}

/** A file per process in `directory`; null: the lines are dropped (the last ones are kept by each process). */
export async function openLogs(directory: string | null): Promise<ProcessLogs> {
  if (directory === null) return { write: () => {}, close: async () => {} };
  try {
    await mkdir(directory, { recursive: true });
    await access(directory, constants.W_OK);
  } catch (error) {
    throw invalidArgument(
      'logDirectory',
      directory,
      `a directory that can be written (${(error as Error).message})`,
    );
  }
  const files = new Map<string, WriteStream>();
  return {
    write: ({ name }, line) => {
      let file = files.get(name);
      if (!file) {
        file = createWriteStream(join(directory, `${name}.log`));
        files.set(name, file);
      }
      file.write(`${line}\n`);
    },
    close: async () => {
      await Promise.all([...files.values()].map((file) => new Promise<void>((done) => file.end(done))));
    },
  };
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
