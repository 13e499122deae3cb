import { SwitchyardError, shownJson } from '../common/errors.js';

/** Bytes per element of the dtypes that can be loaded; a file may have tensors of others beside them. */
export const elementBytesOf: ReadonlyMap<string, number> = new Map([
  ['BF16', 2],
  ['F16', 2],
  ['F32', 4],
  ['F8_E4M3', 1],
  ['F8_E8M0', 1],
  ['I8', 1],
  ['U8', 1],
  ['I32', 4],
  ['I64', 8],
]);

/** The format's own limit. It bounds the memory that a hostile file can make its reader take. */
export const headerBytesMax = 100_000_000;
/** The length of the header, a little-endian u64, is in front of it. */
export const headerLengthBytes = 8;

export interface TensorEntry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  /** From the start of the file. */
  readonly byteOffset: number;
  readonly byteLength: number;
}

export interface SafetensorsHeader {
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: Readonly<Record<string, string>>;
}

/**
 * MODEL_INVALID: says where, the value seen, what is allowed. `tensor` is null for the file as a whole. What a
 * hostile file chose is cut to a length that a log bears.
 */
export function fileInvalid(
  file: string,
  tensor: string | null,
  field: string,
  value: string | undefined,
  allowed: string,
): SwitchyardError {
  const shown = (value ?? 'missing').slice(0, 200);
  const where = tensor === null ? file : `${file}: tensor ${JSON.stringify(tensor.slice(0, 200))}`;
  return new SwitchyardError('MODEL_INVALID', `${where}: ${field} is ${shown}; allowed: ${allowed}`, {
    file,
    tensor,
    field,
    value: shown,
    allowed,
  });
}

/**
 * MODEL_INVALID for a tensor that a file, or an index, should name.
 * @param names of the tensors that it does name: one that differs by its prefix alone is told.
 */
export function tensorMissing(
  file: string,
  tensor: string,
  names: Pick<ReadonlyMap<string, unknown>, 'keys'>,
): SwitchyardError {
  let message = `${file}: tensor ${JSON.stringify(tensor)} is missing`;
  const prefix = tensor.slice(0, tensor.indexOf('.') + 1);
  const rest = tensor.slice(prefix.length);
  for (const name of names.keys()) {
    if (name !== rest && !name.endsWith(`.${rest}`)) continue;
    message += `; it names ${JSON.stringify(name.slice(0, 200))}: tensors with another prefix than ${JSON.stringify(prefix)} are not supported`;
    break;
  }
  return new SwitchyardError('MODEL_INVALID', message, { file, tensor });
}

/**
 * Checks the length in front of a header against the file's size, before any memory is taken for the header.
 * @param prefix the first 8 bytes of the file.
 */
export function headerLength(file: string, fileBytes: number, prefix: Uint8Array): number {
  if (prefix.byteLength < headerLengthBytes) {
    throw fileInvalid(file, null, 'file size', `${fileBytes} bytes`, 'at least 8 bytes');
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  const lengthMax = Math.min(headerBytesMax, fileBytes - headerLengthBytes);
  if (length < 2n || length > BigInt(lengthMax)) {
    throw fileInvalid(file, null, 'header length', `${length} bytes`, `2 to ${lengthMax} bytes`);
  }
  return Number(length);
}

/**
 * Parses a header and checks every shape and offset, and that the tensors fill the data without overlap or hole, as the format
 * demands. Whether a tensor has a dtype that can be loaded, and its size, is checked where it is needed.
 * @param text the header without the length in front of it.
 */
export function parseHeader(file: string, fileBytes: number, text: Uint8Array): SafetensorsHeader {
  const json = parseJsonObject(file, text);
  const dataStart = headerLengthBytes + text.byteLength;
  const tensors = new Map<string, TensorEntry>();
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(json)) {
    if (name === '__metadata__') metadata = parseMetadata(file, value);
    else tensors.set(name, parseEntry(file, name, value, dataStart, fileBytes));
  }
  requireContiguous(file, [...tensors.values()], dataStart, fileBytes);
  return { tensors, metadata };
}

function parseJsonObject(file: string, text: Uint8Array): Record<string, unknown> {
  let decoded: string;
  let json: unknown;
  try {
    decoded = new TextDecoder('utf-8', { fatal: true }).decode(text);
    json = JSON.parse(decoded);
  } catch (error) {
    throw fileInvalid(file, null, 'header', (error as Error).message, 'a JSON object in UTF-8');
  }
  if (!isObject(json)) throw fileInvalid(file, null, 'header', decoded.slice(0, 40), 'a JSON object');
  const duplicate = duplicateKey(decoded);
  if (duplicate !== null) throw fileInvalid(file, duplicate, 'key', 'given twice', 'each key once');
  return json;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * The first key that an object of a valid JSON text holds twice, or null. JSON.parse keeps the last one in
 * silence, and two readers that disagree on which one counts would load different weights.
 */
function duplicateKey(json: string): string | null {
  const open: Set<string>[] = [];
  let position = 0;
  while (position < json.length) {
    const character = json[position];
    const start = position++;
    if (character === '{') open.push(new Set());
    else if (character === '}') open.pop();
    else if (character === '"') {
      while (json[position] !== '"') position += json[position] === '\\' ? 2 : 1;
      position++;
      let after = position;
      while (isSpace(json.charCodeAt(after))) after++;
      if (json[after] !== ':') continue;
      const key = JSON.parse(json.slice(start, position)) as string;
      const keys = open.at(-1)!;
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
  return null;
}

function isSpace(code: number): boolean {
  return code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09;
}

function parseMetadata(file: string, value: unknown): Record<string, string> {
  if (isObject(value) && Object.values(value).every((entry) => typeof entry === 'string')) {
    return value as Record<string, string>;
  }
  throw fileInvalid(file, '__metadata__', 'value', shownJson(value), 'an object of strings');
}

function parseEntry(
  file: string,
  name: string,
  value: unknown,
  dataStart: number,
  fileBytes: number,
): TensorEntry {
  if (!isObject(value)) {
    throw fileInvalid(file, name, 'entry', shownJson(value), 'an object of dtype, shape, data_offsets');
  }
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== 'string') throw fileInvalid(file, name, 'dtype', shownJson(dtype), 'a text');
  if (!isSizes(shape)) {
    throw fileInvalid(file, name, 'shape', shownJson(shape), 'a list of integers from 0 to 2^53 - 1');
  }
  const dataBytes = fileBytes - dataStart;
  if (!isSizes(offsets) || offsets.length !== 2 || offsets[0]! > offsets[1]! || offsets[1]! > dataBytes) {
    const allowed = `[begin, end] with 0 <= begin <= end <= ${dataBytes} (the data of the file)`;
    throw fileInvalid(file, name, 'data_offsets', shownJson(offsets), allowed);
  }
  const [begin, end] = offsets as [number, number];
  return { name, dtype, shape, byteOffset: dataStart + begin, byteLength: end - begin };
}

/** Throws unless a tensor of a dtype that can be loaded has the bytes of its shape. */
export function requireSize(file: string, { name, dtype, shape, byteLength }: TensorEntry): void {
  // A product of shapes can pass 2^53, so it is not done in floating point.
  const needed = shape.reduce((product, size) => product * BigInt(size), BigInt(elementBytesOf.get(dtype)!));
  if (needed === BigInt(byteLength)) return;
  const allowed = `the ${needed} bytes of ${dtype} ${JSON.stringify(shape)}`;
  throw fileInvalid(file, name, 'data_offsets', `${byteLength} bytes apart`, allowed);
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

function requireContiguous(file: string, entries: TensorEntry[], dataStart: number, fileBytes: number): void {
  entries.sort((a, b) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength);
  let end = dataStart;
  for (const entry of entries) {
    if (entry.byteOffset !== end) {
      const fault = entry.byteOffset < end ? 'overlap' : 'hole';
      const begin = entry.byteOffset - dataStart;
      throw fileInvalid(
        file,
        entry.name,
        'data_offsets',
        `a begin of ${begin} (${fault})`,
        `${end - dataStart}`,
      );
    }
    end += entry.byteLength;
  }
  if (end !== fileBytes) {
    throw fileInvalid(
      file,
      null,
      'file size',
      `${fileBytes} bytes`,
      `${end} bytes, the end of its last tensor`,
    );
  }
}

/** A header in bytes with its length in front, padded with spaces so that the data is 8-byte aligned. */
export function encodeHeader(
  entries: readonly { name: string; dtype: string; shape: readonly number[] }[],
): Uint8Array {
  let begin = 0;
  const described = entries.map(({ name, dtype, shape }) => {
    const end = begin + shape.reduce((product, size) => product * size, elementBytesOf.get(dtype)!);
    const entry = { dtype, shape, data_offsets: [begin, end] };
    begin = end;
    return [name, entry] as const;
  });
  const text = new TextEncoder().encode(JSON.stringify(Object.fromEntries(described)));
  const length = Math.ceil(text.byteLength / 8) * 8;
  const header = new Uint8Array(headerLengthBytes + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(text, headerLengthBytes);
  return header;
}
