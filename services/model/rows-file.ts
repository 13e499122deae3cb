import { type FileHandle, open, stat } from 'node:fs/promises';
import { native, type Slab } from '../../native/index.js';
import { invalidArgument, SwitchyardError } from '../common/errors.js';
import { OutputFile } from '../common/output-file.js';
import { TokenRanges } from '../common/token-ranges.js';
import { readHeader } from './safetensors.js';
import { encodeHeader, requireSize, type TensorEntry } from './safetensors-header.js';

/** BF16. */
const elementBytes = 2;

/** Token rows in a file: one BF16 tensor [..., hidden] of a .safetensors file, or raw little-endian BF16. */
export interface RowsReader {
  readonly path: string;
  /** Name of the tensor; null for a raw file. */
  readonly tensor: string | null;
  readonly tokens: number;
  readonly hidden: number;
  /** [..., hidden]; tokens is the product of what is in front. */
  readonly shape: readonly number[];
  readonly dtype: 'BF16';
  /**
   * Rows [count, hidden] on a slab that the caller owns. Rejects with INVALID_ARGUMENT outside the file and
   * with DATA_LOSS if the file has become shorter.
   */
  read(firstToken: number, count: number): Promise<Slab>;
  close(): Promise<void>;
}

/** Takes the rows of a file in any order. The file is there at `close`, whole or not at all, as of any `OutputFile`. */
export interface RowsWriter {
  /** Writes whole rows; each token once. What is passed in stays the caller's and must not change until it is written. */
  write(firstToken: number, rows: Slab | Uint8Array): Promise<void>;
  /** Puts the file in place. Rejects with DATA_LOSS if tokens are missing. */
  close(): Promise<void>;
  /** Removes what was written. Idempotent; does nothing after `close`. */
  abort(): Promise<void>;
}

function isSafetensors(path: string): boolean {
  return path.endsWith('.safetensors');
}

/**
 * Opens a file of rows, by extension.
 * @param options.tensor which tensor of a .safetensors file; null: its only one.
 * @param options.hidden elements of a row, which the file must agree with.
 * Rejects with INVALID_ARGUMENT (file does not fit) or MODEL_INVALID (not a valid safetensors file).
 */
export async function openRowsReader(
  path: string,
  options: { tensor: string | null; hidden: number },
): Promise<RowsReader> {
  const handle = await openForReading(path, 'input');
  try {
    const place = isSafetensors(path)
      ? await tensorIn(path, options.tensor, options.hidden)
      : await rawIn(path, handle, options);
    return new FileReader(path, handle, place);
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Where the rows of a file are. */
interface RowsPlace {
  tensor: string | null;
  shape: readonly number[];
  byteOffset: number;
}

async function rawIn(
  path: string,
  handle: FileHandle,
  { tensor, hidden }: { tensor: string | null; hidden: number },
): Promise<RowsPlace> {
  if (tensor !== null) {
    const allowed = `none: ${path} holds raw rows, as its name does not end in .safetensors`;
    throw invalidArgument('tensor', tensor, allowed);
  }
  const { size } = await handle.stat();
  const rowBytes = hidden * elementBytes;
  if (size === 0 || size % rowBytes !== 0) {
    const allowed = `a multiple of ${rowBytes} bytes above 0 (${hidden} BF16 values a row)`;
    throw invalidArgument(`the size of ${path}`, `${size} bytes`, allowed);
  }
  return { tensor: null, shape: [size / rowBytes, hidden], byteOffset: 0 };
}

async function tensorIn(path: string, tensor: string | null, hidden: number): Promise<RowsPlace> {
  const entry = await findTensor(path, tensor);
  const { name, dtype, shape, byteOffset } = entry;
  const quoted = JSON.stringify(name);
  if (dtype !== 'BF16') throw invalidArgument(`the dtype of tensor ${quoted} in ${path}`, dtype, 'BF16');
  if (shape.at(-1) !== hidden) {
    const field = `the shape of tensor ${quoted} in ${path}`;
    throw invalidArgument(field, `[${shape.join(', ')}]`, `[..., ${hidden}]`);
  }
  requireSize(path, entry);
  return { tensor: name, shape, byteOffset };
}

async function findTensor(path: string, tensor: string | null): Promise<TensorEntry> {
  const { tensors } = await readHeader(path);
  const names = [...tensors.keys()];
  const name = tensor ?? (names.length === 1 ? names[0]! : null);
  const entry = name === null ? undefined : tensors.get(name);
  if (entry !== undefined) return entry;
  const shown = names.slice(0, 10).map((each) => JSON.stringify(each));
  if (names.length > shown.length) shown.push(`${names.length - shown.length} more`);
  throw invalidArgument(
    `the tensor of ${path}`,
    name ?? 'not named',
    shown.join(', ') || 'none: it holds no tensor',
  );
}

/** A regular file. Rejects with INVALID_ARGUMENT, naming `field`. */
export async function openForReading(path: string, field: string): Promise<FileHandle> {
  try {
    // Of a FIFO the size is 0, and whoever opens one may wait for ever.
    if (!(await stat(path)).isFile()) throw new Error('it is no regular file');
    return await open(path, 'r');
  } catch (error) {
    throw invalidArgument(field, path, `a file that can be read (${(error as Error).message})`);
  }
}

class FileReader implements RowsReader {
  readonly dtype = 'BF16';
  readonly tensor: string | null;
  readonly shape: readonly number[];
  readonly tokens: number;
  readonly hidden: number;
  private readonly dataStart: number;

  constructor(
    readonly path: string,
    private readonly handle: FileHandle,
    { tensor, shape, byteOffset }: RowsPlace,
  ) {
    this.tensor = tensor;
    this.shape = shape;
    this.dataStart = byteOffset;
    this.hidden = shape.at(-1)!;
    this.tokens = shape.slice(0, -1).reduce((product, size) => product * size, 1);
  }

  async read(firstToken: number, count: number): Promise<Slab> {
    requireTokens(firstToken, count, this.tokens);
    const rowBytes = this.hidden * elementBytes;
    const slab = native.allocateSlab(count * rowBytes);
    try {
      // The kernel copies into the slab. Mapping the file would count all of it as resident memory.
      const view = slab.view();
      let done = 0;
      while (done < view.byteLength) {
        const position = this.dataStart + firstToken * rowBytes + done;
        const { bytesRead } = await this.handle.read(view, done, view.byteLength - done, position);
        if (bytesRead === 0) {
          const message = `${this.path}: ends at byte ${position}; it had more when it was opened`;
          throw new SwitchyardError('DATA_LOSS', message, { file: this.path });
        }
        done += bytesRead;
      }
      return slab;
    } catch (error) {
      slab.release();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.handle.close();
  }
}

function requireTokens(first: number, count: number, tokens: number): void {
  if (!Number.isSafeInteger(first) || first < 0 || first >= tokens) {
    throw invalidArgument('the first token', first, `0 to ${tokens - 1}`);
  }
  if (!Number.isSafeInteger(count) || count < 1 || count > tokens - first) {
    throw invalidArgument('the number of tokens', count, `1 to ${tokens - first} from token ${first}`);
  }
}

/**
 * Creates a file of BF16 rows, by extension.
 * @param options.tensor name of the tensor in a .safetensors file.
 * @param options.shape [..., hidden]
 * @param signal ends the wait for the reader of a pipe.
 */
export async function createRowsWriter(
  path: string,
  options: { tensor: string; shape: readonly number[] },
  signal?: AbortSignal,
): Promise<RowsWriter> {
  const { tensor, shape } = options;
  if (shape.length === 0 || shape.some((size) => !Number.isSafeInteger(size) || size < 1)) {
    throw invalidArgument('shape', `[${shape.join(', ')}]`, 'integers of at least 1');
  }
  const header = isSafetensors(path)
    ? encodeHeader([{ name: tensor, dtype: 'BF16', shape }])
    : new Uint8Array(0);
  const file = await OutputFile.open('output', path, signal);
  await file.write(header, 0);
  return new FileWriter(file, shape, header.byteLength);
}

class FileWriter implements RowsWriter {
  readonly #tokens: number;
  readonly #rowBytes: number;
  /** What is written or being written. */
  readonly #taken = new TokenRanges();
  #failure: unknown = null;

  constructor(
    private readonly file: OutputFile,
    shape: readonly number[],
    private readonly dataStart: number,
  ) {
    this.#tokens = shape.slice(0, -1).reduce((product, size) => product * size, 1);
    this.#rowBytes = shape.at(-1)! * elementBytes;
  }

  async write(firstToken: number, rows: Slab | Uint8Array): Promise<void> {
    const bytes = rows instanceof Uint8Array ? rows : rows.view();
    const count = bytes.byteLength / this.#rowBytes;
    requireTokens(firstToken, count, this.#tokens);
    if (!this.#taken.take(firstToken, firstToken + count)) {
      const range = `${firstToken} to ${firstToken + count - 1}`;
      throw invalidArgument('the tokens to write', range, 'tokens that were not written before');
    }
    try {
      await this.file.write(bytes, this.dataStart + firstToken * this.#rowBytes);
    } catch (error) {
      this.#failure = error;
      throw error;
    }
  }

  async close(): Promise<void> {
    if (this.#failure !== null) {
      await this.abort();
      throw this.#failure;
    }
    const missing = this.#taken.firstMissing;
    if (missing < this.#tokens) {
      await this.abort();
      const { path } = this.file;
      const message = `${path}: token ${missing} of ${this.#tokens} was never written`;
      throw new SwitchyardError('DATA_LOSS', message, { file: path, token: missing });
    }
    await this.file.close();
  }

  abort(): Promise<void> {
    return this.file.abort();
  }
}
