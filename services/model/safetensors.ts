import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import type { StoredDtype, TensorSource } from '../../native/index.js';
import { type MappedFile, native } from '../../native/index.js';
import { SwitchyardError } from '../common/errors.js';
import {
  fileInvalid,
  headerLength,
  headerLengthBytes,
  parseHeader,
  type SafetensorsHeader,
  type TensorEntry,
} from './safetensors-header.js';

const storedDtypes: readonly string[] = ['BF16', 'F16', 'F32'] satisfies StoredDtype[];

/** Where a row-major matrix begins in its tensor: one expert's part of a fused tensor begins further in. */
export interface MatrixPart {
  rows: number;
  columns: number;
  /** Shape that the whole tensor must have. */
  tensorShape: readonly number[];
  /** Elements of the tensor in front of the matrix. */
  elementOffset: number;
}

/**
 * One safetensors file: its checked header, and its tensors as memory-mapped sources. The file is mapped at the
 * first source taken from it; JavaScript reads nothing but the header.
 */
export class SafetensorsFile {
  #mapped: MappedFile | null = null;

  private constructor(
    readonly path: string,
    readonly byteLength: number,
    readonly header: SafetensorsHeader,
    /** SHA-256 over size, header and samples of the data. */
    readonly digest: string,
  ) {}

  /** Reads and checks the header. Rejects with MODEL_INVALID, which names file, tensor, value and what is allowed. */
  static async open(path: string): Promise<SafetensorsFile> {
    const handle = await openFile(path);
    try {
      const { size } = await handle.stat();
      const prefix = await readExactly(handle, path, 0, Math.min(size, headerLengthBytes));
      const text = await readExactly(handle, path, headerLengthBytes, headerLength(path, size, prefix));
      const header = parseHeader(path, size, text);
      const digest = createHash('sha256').update(`${size}\n`).update(text);
      for (const sample of await readSamples(handle, path, headerLengthBytes + text.byteLength, size)) {
        digest.update(sample);
      }
      return new SafetensorsFile(path, size, header, digest.digest('hex'));
    } finally {
      await handle.close();
    }
  }

  /** The entry of a tensor. Throws MODEL_INVALID if the file does not hold it. */
  entry(name: string): TensorEntry {
    const entry = this.header.tensors.get(name);
    if (entry === undefined) throw missingTensor(name, this.path);
    return entry;
  }

  /** Throws MODEL_INVALID unless the tensor is here with the expected shape and a dtype that can be loaded. */
  check(name: string, tensorShape: readonly number[]): TensorEntry {
    const entry = this.entry(name);
    if (!storedDtypes.includes(entry.dtype)) {
      throw fileInvalid(this.path, name, 'dtype', entry.dtype, storedDtypes.join(', '));
    }
    if (entry.shape.length !== tensorShape.length || entry.shape.some((size, i) => size !== tensorShape[i])) {
      const seen = JSON.stringify(entry.shape);
      throw fileInvalid(
        this.path,
        name,
        'shape',
        seen,
        `${JSON.stringify(tensorShape)} by the configuration`,
      );
    }
    return entry;
  }

  /** A matrix of the file for the addon. It is valid until `close`. */
  matrix(name: string, part: MatrixPart): TensorSource {
    const entry = this.check(name, part.tensorShape);
    const dtype = entry.dtype as StoredDtype;
    const byteOffset = entry.byteOffset + part.elementOffset * (dtype === 'F32' ? 4 : 2);
    return { kind: 'file', file: this.#map(), byteOffset, dtype, rows: part.rows, columns: part.columns };
  }

  #map(): MappedFile {
    if (this.#mapped !== null) return this.#mapped;
    const mapped = native.openMappedFile(this.path);
    if (mapped.byteLength !== this.byteLength) {
      mapped.close();
      const allowed = `${this.byteLength} bytes, as when it was opened`;
      throw fileInvalid(this.path, null, 'file size', `${mapped.byteLength} bytes`, allowed);
    }
    this.#mapped = mapped;
    return mapped;
  }

  /** Unmaps the file once no operation uses it. */
  close(): void {
    this.#mapped?.close();
    this.#mapped = null;
  }
}

/** MODEL_INVALID for a tensor that a file, or an index, should name. */
export function missingTensor(name: string, file: string): SwitchyardError {
  const message = `${file}: tensor ${JSON.stringify(name)} is missing`;
  return new SwitchyardError('MODEL_INVALID', message, { file, tensor: name });
}

async function openFile(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r');
  } catch (error) {
    throw new SwitchyardError('MODEL_INVALID', `${path}: cannot be opened: ${(error as Error).message}`, {
      file: path,
    });
  }
}

async function readExactly(handle: FileHandle, path: string, position: number, length: number) {
  const bytes = new Uint8Array(length);
  let read = 0;
  while (read < length) {
    const { bytesRead } = await handle.read(bytes, read, length - read, position + read);
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

const sampleCount = 32;
const sampleBytes = 4096;

/**
 * Evenly spread samples of the data. Two checkpoints of one shape, say a model and its fine-tuned sister, have
 * equal headers; samples tell them apart without reading hundreds of gigabytes.
 */
async function readSamples(handle: FileHandle, path: string, dataStart: number, size: number) {
  const length = Math.min(sampleBytes, size - dataStart);
  const span = size - dataStart - length;
  const samples: Uint8Array[] = [];
  for (let index = 0; index < sampleCount; index++) {
    const position = dataStart + Math.floor((span * index) / (sampleCount - 1));
    samples.push(await readExactly(handle, path, position, length));
  }
  return samples;
}
