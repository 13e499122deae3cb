import { Readable } from 'node:stream';
import { isAnyArrayBuffer, isUint8Array } from 'node:util/types';
import type { Slab } from '../../native/index.js';
import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import { tokensMax } from '../transport/chunk-size.js';
import { shown } from './shown.js';

/** Bytes piece by piece, wherever they are cut: a stream, a generator, a list. */
export type RowsStream = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

/**
 * Rows in memory, the path of a file (raw BF16 or .safetensors), rows that can be read anywhere, or a stream of
 * bytes (then `sequences` and `length` are needed).
 */
export type ForwardInput = Uint8Array | string | RowsReader | RowsStream;

/** Rows that can be read anywhere, in any order. Rows are `hidden` BF16 values, little-endian. */
export interface RowsReader {
  readonly tokens: number;
  readonly hidden: number;
  /** How many sequences the rows are, where they know it. */
  readonly sequences?: number;
  /** The bytes of `count` rows from row `first` on. Called with at most about 8 MiB of rows; calls may overlap. */
  read(first: number, count: number): Promise<Uint8Array> | Uint8Array;
  /** As `read`, on a slab that the caller owns; used where rows do not pass through Node. */
  readSlab?(first: number, count: number): Promise<Slab>;
  close?(): void | Promise<void>;
}

/** A reader over rows that lie in memory, without a copy. */
export function rowsInMemory(bytes: Uint8Array, hidden: number): RowsReader {
  const rowBytes = hidden * 2;
  if (bytes.byteLength === 0 || bytes.byteLength % rowBytes !== 0) {
    throw invalidArgument(
      'input',
      `${bytes.byteLength} bytes`,
      `a multiple of ${rowBytes} above 0 (rows of ${hidden} BF16)`,
    );
  }
  return {
    tokens: bytes.byteLength / rowBytes,
    hidden,
    read: (first, count) => bytes.subarray(first * rowBytes, (first + count) * rowBytes),
  };
}

/**
 * A reader over a stream of bytes: reads must follow one another without gaps. What arrives is cut into
 * rows wherever the stream was cut; at most one piece of the stream is held back.
 */
export class StreamedRows {
  private readonly pieces: AsyncIterator<unknown> | Iterator<unknown>;
  private held: Uint8Array = new Uint8Array(0);
  private nextRow = 0;
  private seenBytes = 0;

  constructor(
    input: RowsStream,
    readonly tokens: number,
    readonly hidden: number,
  ) {
    this.pieces = Symbol.asyncIterator in input ? input[Symbol.asyncIterator]() : input[Symbol.iterator]();
  }

  async read(first: number, count: number): Promise<Uint8Array> {
    if (first !== this.nextRow) {
      throw new SwitchyardError('INTERNAL', `a stream was read at row ${first}, expected ${this.nextRow}`);
    }
    this.nextRow += count;
    const wanted = count * this.hidden * 2;
    if (this.held.byteLength >= wanted) return this.take(wanted);
    const rows = new Uint8Array(wanted);
    let filled = 0;
    while (filled < wanted) {
      if (this.held.byteLength === 0) await this.refill();
      const part = this.take(Math.min(this.held.byteLength, wanted - filled));
      rows.set(part, filled);
      filled += part.byteLength;
    }
    return rows;
  }

  /** Throws if the stream holds more than was announced. */
  async expectEnd(): Promise<void> {
    while (this.held.byteLength === 0) if (!(await this.next())) return;
    throw invalidArgument('input', 'longer than announced', `${this.tokens} tokens of ${this.hidden} BF16`);
  }

  async close(): Promise<void> {
    await this.pieces.return?.();
  }

  private take(bytes: number): Uint8Array {
    const part = this.held.subarray(0, bytes);
    this.held = this.held.subarray(bytes);
    return part;
  }

  private async refill(): Promise<void> {
    if (await this.next()) return;
    const allowed = `${this.tokens} tokens of ${this.hidden} BF16, ${this.tokens * this.hidden * 2} bytes`;
    throw invalidArgument('input', `${this.seenBytes} bytes long`, allowed);
  }

  /** Holds the next piece; false: there is none. */
  private async next(): Promise<boolean> {
    const { done, value } = await this.pieces.next();
    if (done) return false;
    if (!isUint8Array(value)) {
      const seen = typeof value === 'string' ? 'text' : shown(value);
      throw invalidArgument(
        'input',
        `${seen} at byte ${this.seenBytes}`,
        'Uint8Arrays; streams have no encoding',
      );
    }
    this.held = value;
    this.seenBytes += value.byteLength;
    return true;
  }
}

function isReader(input: object): input is RowsReader {
  return typeof (input as Partial<RowsReader>).read === 'function' && 'tokens' in input;
}

/** Throws INVALID_ARGUMENT for what is no input at all. */
export function checkInput(input: unknown): asserts input is ForwardInput {
  if (typeof input === 'string' || isUint8Array(input)) return;
  // Other arrays of numbers can be iterated too, and what they hold is not bytes.
  if (typeof input === 'object' && input !== null && !ArrayBuffer.isView(input) && !isAnyArrayBuffer(input)) {
    const streams = Symbol.asyncIterator in input || Symbol.iterator in input;
    if (isReader(input) || (streams && !(Array.isArray(input) && !input.every(isUint8Array)))) return;
  }
  const allowed =
    'a Uint8Array, the path of a file, a RowsReader, or a stream, generator or list of Uint8Arrays';
  throw invalidArgument('input', shown(input), allowed);
}

/** A stream that fails before it is read would end the process: its reads tell the error. */
export function keepError(input: ForwardInput): void {
  if (input instanceof Readable) input.on('error', () => {});
}

/** Settles as `work` does, which is the input's own. Rejects with INVALID_ARGUMENT for an error that is none of the product. */
export async function fromInput<T>(work: () => Promise<T> | T): Promise<T> {
  try {
    return await work();
  } catch (thrown) {
    const error = asSwitchyardError(thrown);
    if (error === thrown || error.code !== 'INTERNAL') throw error;
    const text = `input failed: ${error.message}`;
    throw new SwitchyardError('INVALID_ARGUMENT', text, { field: 'input' }, { cause: thrown });
  }
}

export interface FileRows extends RowsReader {
  /** Name of the tensor; null for a raw file. */
  readonly tensor: string | null;
  readonly shape: readonly number[];
}

/**
 * A file of rows: raw little-endian BF16, or a BF16 tensor of a .safetensors file (null: its only one). All
 * dimensions of a tensor but the last two count its sequences. The file code needs the native addon; it is
 * loaded here, so that clients without files do not.
 */
export async function rowsInFile(path: string, tensor: string | null, hidden: number): Promise<FileRows> {
  const { openRowsReader } = await import('../model/rows-file.js');
  const file = await openRowsReader(path, { tensor, hidden });
  return {
    tokens: file.tokens,
    hidden: file.hidden,
    tensor: file.tensor,
    shape: file.shape,
    sequences: file.shape.slice(0, -2).reduce((product, size) => product * size, 1),
    read: (first, count) => copied(file.read(first, count)),
    readSlab: (first, count) => file.read(first, count),
    close: () => file.close(),
  };
}

/** The rows of a slab, which is released, as bytes that stay. */
export async function copied(rows: Promise<Slab>): Promise<Uint8Array> {
  const slab = await rows;
  try {
    return Buffer.from(slab.view());
  } finally {
    slab.release();
  }
}

export interface InputShape {
  sequences?: number;
  length?: number;
  tensor?: string;
}

/**
 * What a batch is made of. Throws INVALID_ARGUMENT unless the input is `sequences` × `length` tokens of `hidden` elements, and no
 * more than a batch may have.
 */
export async function openInput(
  input: ForwardInput,
  hidden: number,
  shape: InputShape,
): Promise<{ source: RowsReader | StreamedRows; sequences: number; length: number }> {
  const source = await fromInput(() => toSource(input, hidden, shape));
  try {
    if (source.hidden !== hidden) {
      throw invalidArgument('input.hidden', shown(source.hidden), `${hidden}, the model's`);
    }
    return { source, ...shapeOf(source, shape) };
  } catch (error) {
    await source.close?.();
    throw error;
  }
}

async function toSource(
  input: ForwardInput,
  hidden: number,
  { sequences, length, tensor }: InputShape,
): Promise<RowsReader | StreamedRows> {
  if (typeof input === 'string') return rowsInFile(input, tensor ?? null, hidden);
  if (tensor !== undefined)
    throw invalidArgument('tensor', tensor, 'none, unless the input is a .safetensors file');
  if (isUint8Array(input)) return rowsInMemory(input, hidden);
  if (isReader(input)) return input;
  if (sequences === undefined || length === undefined) {
    throw invalidArgument('sequences and length', 'not given', 'both, when the input is a stream');
  }
  return new StreamedRows(input, sequences * length, hidden);
}

function shapeOf(
  source: RowsReader | StreamedRows,
  shape: InputShape,
): { sequences: number; length: number } {
  const { tokens } = source;
  const sequences = shape.sequences ?? ('sequences' in source ? source.sequences : undefined) ?? 1;
  const length = shape.length ?? tokens / sequences;
  if (tokens > tokensMax) {
    const allowed = `at most ${tokensMax} tokens in a batch`;
    throw invalidArgument('sequences × length', `${sequences} × ${length}`, allowed);
  }
  if (!isCount(tokens)) throw invalidArgument('input.tokens', shown(tokens), `1 to ${tokensMax}`);
  if (isCount(sequences) && isCount(length) && sequences * length === tokens) return { sequences, length };
  if (shape.length === undefined) {
    const field = shape.sequences === undefined ? 'input.sequences' : 'sequences';
    throw invalidArgument(field, shown(sequences), `a divisor of ${tokens}, the input's tokens`);
  }
  throw invalidArgument('sequences × length', `${sequences} × ${length}`, `${tokens}, the input's tokens`);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 1;
}
