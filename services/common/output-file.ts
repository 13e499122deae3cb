import { randomBytes } from 'node:crypto';
import { constants, type Stats } from 'node:fs';
import { access, type FileHandle, open, readlink, realpath, rename, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { isatty } from 'node:tty';
import { invalidArgument, SwitchyardError } from './errors.js';
import { sleep } from './lifecycle.js';

const linksMax = 40;
const copyBytes = 1 << 20;
const readerPollMs = 50;
/** Room for what a temporary name adds, within the 255 bytes of a name. */
const nameCharactersMax = 50;

/** How a finished output gets to where it belongs. */
interface Destination {
  /** The directory of what is written meanwhile, if that is a temporary file. */
  temporary?: string;
  /** What is written meanwhile, at any position. */
  handle: FileHandle;
  /** Called once everything is written. */
  commit: () => Promise<void>;
  /** Called if that will not be. */
  discard: () => Promise<void>;
}

/** Whether the path means standard output, which is written to as it is, whatever it leads to. */
export function isStandardOutput(path: string | null): boolean {
  return path !== null && ['-', '/dev/stdout', '/dev/fd/1', '/proc/self/fd/1'].includes(path);
}

/** Throws INVALID_ARGUMENT if two of the options name one file, whose contents would mix. */
export function assertApart(options: Readonly<Record<string, string | null>>): void {
  const optionOf = new Map<string, string>();
  for (const [option, path] of Object.entries(options)) {
    if (path === null || path === '/dev/null') continue;
    const key = isStandardOutput(path) ? '-' : resolved(option, path);
    const other = optionOf.get(key);
    if (other !== undefined) throw invalidArgument(option, path, `another file than that of ${other}`);
    optionOf.set(key, option);
  }
}

/** Relative paths begin at the working directory, which may have been removed. */
function resolved(option: string, path: string): string {
  try {
    return resolve(path);
  } catch (error) {
    throw invalidArgument(
      option,
      path,
      `an absolute path, as there is no working directory (${reasonOf(error)})`,
    );
  }
}

/**
 * A file that a user asked for, written at any position and there as a whole or not at all. A symbolic link stays: what it
 * leads to is written. A regular file keeps its mode and its owner. What cannot be written in any order or replaced (a
 * pipe, a terminal, a file with several names or in a directory of others) gets the content in one go at `close`, from a
 * temporary file. Devices that take any order, as /dev/null does, are written at once.
 */
export class OutputFile {
  private end = 0;
  private open = true;

  private constructor(
    readonly path: string,
    private readonly destination: Destination,
  ) {}

  /**
   * `option`: by what name an error calls it. `signal` ends the wait for a pipe's reader. Throws INVALID_ARGUMENT if the path
   * cannot be written.
   */
  static async open(option: string, path: string, signal?: AbortSignal): Promise<OutputFile> {
    try {
      return new OutputFile(path, await openDestination(path, signal));
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      throw invalidArgument(option, path, `a file that can be written (${reasonOf(error)})`);
    }
  }

  /** `position`: where the bytes begin; by default behind all that was written. Throws as `unwritten` says. */
  async write(bytes: Uint8Array, position = this.end): Promise<void> {
    this.end = Math.max(this.end, position + bytes.byteLength);
    const { handle, temporary } = this.destination;
    const what = temporary && `the temporary file for ${this.path} in ${temporary} (TMPDIR)`;
    await this.named(writeAll(handle, bytes, position), what);
  }

  /** Puts the content in place. Throws as `write` does. */
  async close(): Promise<void> {
    if (!this.open) return;
    this.open = false;
    await this.named(this.destination.commit());
  }

  /** Leaves everything as it was. Idempotent; does nothing after `close`. */
  async abort(): Promise<void> {
    if (!this.open) return;
    this.open = false;
    await this.destination.discard();
  }

  private async named(work: Promise<void>, what = this.path): Promise<void> {
    try {
      await work;
    } catch (error) {
      throw unwritten(this.path, error, what);
    }
  }
}

/** A limit of the disk, the user or the process; it may be another at another time. */
const noRoom = new Set(['ENOSPC', 'EDQUOT', 'EFBIG']);

/** RESOURCE_EXHAUSTED where there is no room for the file, or else DATA_LOSS: it is not whole. */
function unwritten(path: string, cause: unknown, what: string): SwitchyardError {
  const full = noRoom.has((cause as NodeJS.ErrnoException).code ?? '');
  const text = `${what} could not be written: ${reasonOf(cause)}`;
  return new SwitchyardError(full ? 'RESOURCE_EXHAUSTED' : 'DATA_LOSS', text, { file: path }, { cause });
}

/** Nobody knows the file that is there in the meantime: its name is left out. */
const reasonOf = (error: unknown): string => (error as Error).message.replace(/, \w+ '.*\.partial'.*$/, '');

async function openDestination(path: string, signal?: AbortSignal): Promise<Destination> {
  if (isStandardOutput(path)) return gathered((bytes) => writeStandardOutput(bytes));
  if (path === '' || path.endsWith('/')) throw new Error('it names no file');
  const target = await followLinks(path);
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw error;
  });
  if (found === null) return replacing(target, null);
  await access(path, constants.W_OK);
  if (found.isDirectory()) throw new Error('it is a directory');
  // A descriptor of this process is what it leads to now; whoever opened that may go on with it.
  const replaceable = found.isFile() && found.nlink === 1 && !/^\/(dev|proc)\//.test(path);
  if (replaceable) {
    const destination = await replacing(target, found).catch(() => null);
    if (destination !== null) return destination;
  }
  const handle = found.isFIFO()
    ? await openPipe(path, signal)
    : await open(path, found.isFile() ? 'r+' : 'w');
  if (found.isBlockDevice() || (found.isCharacterDevice() && !isatty(handle.fd))) {
    const close = () => handle.close();
    return { handle, commit: close, discard: close };
  }
  return gatheredInto(handle, found);
}

/** The path that a file written under `path` has in the end, whether it exists or not. */
async function followLinks(path: string): Promise<string> {
  let at = path;
  for (let links = 0; links < linksMax; links += 1) {
    const link = await readlink(at).catch(() => null);
    if (link === null) return at;
    at = resolve(await realpath(dirname(at)), link);
  }
  throw new Error('too many symbolic links');
}

/** A new file beside the target, which takes its place, mode and owner when it is complete. */
async function replacing(target: string, found: Stats | null): Promise<Destination> {
  const name = basename(target).slice(0, nameCharactersMax);
  const partial = join(dirname(target), `${name}.${randomBytes(4).toString('hex')}.partial`);
  const handle = await open(partial, 'wx', found === null ? 0o666 : 0o600);
  const discard = async () => {
    await handle.close();
    await rm(partial, { force: true });
  };
  try {
    if (found !== null) {
      const { uid, gid } = await handle.stat();
      if (uid !== found.uid || gid !== found.gid) await handle.chown(found.uid, found.gid);
      await handle.chmod(found.mode & 0o7777);
    }
  } catch (error) {
    await discard();
    throw error;
  }
  const commit = async () => {
    try {
      await handle.sync();
      await rename(partial, target);
    } catch (error) {
      await discard();
      throw error;
    }
    await handle.close();
  };
  return { handle, commit, discard };
}

/** A temporary file without a name, whose content `take` gets in order when it is complete. */
async function gathered(take: (bytes: Uint8Array) => Promise<void>): Promise<Destination> {
  const temporary = tmpdir();
  const path = join(temporary, `switchyard-${randomBytes(8).toString('hex')}`);
  const handle = await open(path, 'wx+', 0o600);
  await rm(path);
  const commit = async () => {
    try {
      const block = Buffer.allocUnsafe(copyBytes);
      for (let position = 0; ; ) {
        const { bytesRead } = await handle.read(block, 0, block.byteLength, position);
        if (bytesRead === 0) break;
        await take(block.subarray(0, bytesRead));
        position += bytesRead;
      }
    } finally {
      await handle.close();
    }
  };
  return { temporary, handle, commit, discard: () => handle.close() };
}

async function gatheredInto(handle: FileHandle, found: Stats): Promise<Destination> {
  const inner = await gathered((bytes) => writeAll(handle, bytes, null)).catch(async (error) => {
    await handle.close();
    throw error;
  });
  const ending = (work: () => Promise<void>) => () => work().finally(() => handle.close());
  const fill = async () => {
    if (found.isFile()) await handle.truncate();
    await inner.commit();
  };
  return { ...inner, commit: ending(fill), discard: ending(inner.discard) };
}

/** Opening a pipe blocks a thread of Node until somebody reads; asking again does not, and can be given up. */
async function openPipe(path: string, signal?: AbortSignal): Promise<FileHandle> {
  for (;;) {
    try {
      const reached = await open(path, constants.O_WRONLY | constants.O_NONBLOCK);
      // There is a reader now. Without O_NONBLOCK a write waits for it, as it should.
      return await open(path, constants.O_WRONLY).finally(() => reached.close());
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENXIO') throw error;
    }
    await sleep(readerPollMs, signal);
  }
}

/** `position` null: where the file stands. */
async function writeAll(handle: FileHandle, bytes: Uint8Array, position: number | null): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    const at = position === null ? null : position + done;
    done += (await handle.write(bytes, done, bytes.byteLength - done, at)).bytesWritten;
  }
}

function writeStandardOutput(bytes: Uint8Array): Promise<void> {
  return new Promise((done, reject) => {
    process.stdout.write(bytes, (error) => (error ? reject(error) : done()));
  });
}
