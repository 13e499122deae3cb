import { type FileHandle, open } from 'node:fs/promises';
import { native, type WeightFile } from '../../native/index.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import { narrowInt64 } from '../common/packed.js';
import type { DigestCache } from './digest-cache.js';
import { digestOf } from './file-digest.js';
import type { HashProgress } from './hash-progress.js';
import { refuseLfsPointer } from './lfs.js';
import {
  fileInvalid,
  headerLength,
  headerLengthBytes,
  parseHeader,
  requireSize,
  type SafetensorsHeader,
  type TensorEntry,
  tensorMissing,
} from './safetensors-header.js';

/** How many dimensions of 1 there are in front of the last one. */
function ones(shape: readonly number[]): number {
  const first = shape.findIndex((size) => size !== 1);
  return first === -1 ? Math.max(shape.length - 1, 0) : Math.min(first, shape.length - 1);
}

/** Of I64. */
const indexBytes = 8;
const indicesAtOnce = 2 ** 18;

/** Enough to tell an LFS pointer by. */
const startBytes = 64;

/** One safetensors file: its checked header, its digest, and its tensors as sources for the addon. */
export class SafetensorsFile {
  private constructor(
    private readonly weights: WeightFile,
    readonly header: SafetensorsHeader,
  ) {}

  /**
   * Reads and checks the header. The file is held open, so that all that is read of it later is of this file.
   * Rejects with MODEL_INVALID, which names file, tensor, value and what is allowed.
   */
  static async open(path: string): Promise<SafetensorsFile> {
    const weights = openWeights(path);
    try {
      return new SafetensorsFile(weights, await readHeader(path));
    } catch (error) {
      weights.close();
      throw error;
    }
  }

  get path(): string {
    return this.weights.path;
  }

  get byteLength(): number {
    return this.weights.byteLength;
  }

  /** Over every byte. Rejects with MODEL_INVALID if the file is no longer the one that was opened. */
  async digest(cache: DigestCache, progress: HashProgress): Promise<string> {
    const { weights, path, byteLength } = this;
    const known = await cache.get(weights);
    if (known !== null) progress.add(byteLength, false);
    const startedMs = Date.now();
    const digest = known ?? (await hashFile(path, byteLength, (bytes) => progress.add(bytes, true)));
    checked(() => weights.requireUnchanged());
    if (known === null) await cache.put(weights, digest, startedMs);
    return digest;
  }

  /** The entry of a tensor. Throws MODEL_INVALID if the file does not hold it. */
  entry(name: string): TensorEntry {
    const entry = this.header.tensors.get(name);
    if (entry === undefined) throw tensorMissing(this.path, name, this.header.tensors);
    return entry;
  }

  /** Throws MODEL_INVALID unless the tensor is here with the expected shape and one of these dtypes. */
  check(name: string, tensorShape: readonly number[], dtypes: readonly string[]): TensorEntry {
    const entry = this.entry(name);
    if (!dtypes.includes(entry.dtype)) {
      throw fileInvalid(this.path, name, 'dtype', entry.dtype, dtypes.join(', '));
    }
    // Some exports have dimensions of 1 in front of vectors.
    const shape = tensorShape.length === 1 ? entry.shape.slice(ones(entry.shape)) : entry.shape;
    if (shape.length !== tensorShape.length || shape.some((size, i) => size !== tensorShape[i])) {
      const seen = JSON.stringify(entry.shape);
      throw fileInvalid(
        this.path,
        name,
        'shape',
        seen,
        `${JSON.stringify(tensorShape)} by the configuration`,
      );
    }
    requireSize(this.path, entry);
    return entry;
  }

  /**
   * Elements of a tensor of I64, which are 0 to below `limit`, at most 2^32. Rejects with MODEL_INVALID, naming the first that is not.
   * Reads piece by piece, so that others have their turn.
   */
  async readIndices(
    { name, byteOffset, byteLength }: TensorEntry,
    limit: number,
    first = 0,
    count = byteLength / indexBytes - first,
  ): Promise<Uint32Array> {
    const { path } = this;
    const indices = new Uint32Array(count);
    await withFile(path, async (handle) => {
      for (let done = 0; done < count; done += indicesAtOnce) {
        const piece = indices.subarray(done, done + indicesAtOnce);
        const at = first + done;
        const start = byteOffset + at * indexBytes;
        const bytes = await readExactly(handle, path, start, piece.length * indexBytes);
        const wrong = narrowInt64(bytes, limit, piece);
        if (wrong === null) continue;
        throw fileInvalid(path, name, `element ${at + wrong.index}`, `${wrong.value}`, `0 to ${limit - 1}`);
      }
    });
    checked(() => this.weights.requireUnchanged());
    return indices;
  }

  /** The file for the addon, valid until `close`. */
  get handle(): { file: WeightFile } {
    return { file: this.weights };
  }

  /** Closes the file once no operation uses it. */
  close(): void {
    this.weights.close();
  }
}

function openWeights(path: string): WeightFile {
  return checked(() => native.openWeightFile(path));
}

/** What the addon throws, as a SwitchyardError. */
function checked<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw asSwitchyardError(error);
  }
}

/** The checked header of a file. Rejects with MODEL_INVALID, which names file, tensor, value and what is allowed. */
export async function readHeader(path: string): Promise<SafetensorsHeader> {
  return await withFile(path, async (handle) => {
    const { size: byteLength } = await handle.stat();
    const start = await readExactly(handle, path, 0, Math.min(byteLength, startBytes));
    refuseLfsPointer(path, start);
    const length = headerLength(path, byteLength, start.subarray(0, headerLengthBytes));
    return parseHeader(path, byteLength, await readExactly(handle, path, headerLengthBytes, length));
  });
}

function hashFile(path: string, byteLength: number, onBytes: (bytes: number) => void): Promise<string> {
  return withFile(path, async (handle) => {
    try {
      return await digestOf(handle, byteLength, onBytes);
    } catch (error) {
      throw error instanceof SwitchyardError ? error : cannotRead(path, error);
    }
  });
}

async function withFile<T>(path: string, use: (handle: FileHandle) => Promise<T>): Promise<T> {
  const handle = await open(path, 'r').catch((error) => {
    throw cannotRead(path, error);
  });
  try {
    return await use(handle);
  } finally {
    await handle.close();
  }
}

function cannotRead(path: string, error: unknown): SwitchyardError {
  const message = `${path}: cannot be read: ${(error as Error).message}`;
  return new SwitchyardError('MODEL_INVALID', message, { file: path }, { cause: error });
}

async function readExactly(handle: FileHandle, path: string, position: number, length: number) {
  const bytes = new Uint8Array(length);
  let read = 0;
  while (read < length) {
    const { bytesRead } = await handle.read(bytes, read, length - read, position + read).catch((error) => {
      throw cannotRead(path, error);
    });
    if (bytesRead === 0) {
      throw fileInvalid(
        path,
        null,
        'file size',
        `${position + read} bytes`,
        `${position + length} bytes or more`,
      );
    }
    read += bytesRead;
  }
  return bytes;
}
