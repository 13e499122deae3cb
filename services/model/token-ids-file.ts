import { readFile, stat } from 'node:fs/promises';
import { invalidArgument } from '../common/errors.js';
import { unpackUint32 } from '../common/packed.js';
import { SafetensorsFile } from './safetensors.js';
import { requireSize } from './safetensors-header.js';

const idsMax = 2 ** 32;
const idBytes = 4;

/**
 * Ids of `tokens` tokens in a file: the only tensor of I64 of a .safetensors file, whatever else it holds, or raw little-endian
 * uint32. Rejects with INVALID_ARGUMENT (file does not fit) or MODEL_INVALID (not a valid safetensors file).
 */
export function readTokenIds(path: string, tokens: number): Promise<Uint32Array> {
  return path.endsWith('.safetensors') ? readTensor(path, tokens) : readRaw(path, tokens);
}

async function readRaw(path: string, tokens: number): Promise<Uint32Array> {
  const allowed = `a file of ${tokens * idBytes} bytes: ${tokens} tokens x uint32`;
  try {
    // Of a FIFO the size is 0, and whoever reads one may wait for ever.
    const found = await stat(path);
    if (!found.isFile()) throw new Error('it is no regular file');
    if (found.size !== tokens * idBytes) throw new Error(`it has ${found.size} bytes`);
    return unpackUint32(await readFile(path));
  } catch (error) {
    throw invalidArgument('tokenIds', path, `${allowed} (${(error as Error).message})`);
  }
}

async function readTensor(path: string, tokens: number): Promise<Uint32Array> {
  const file = await SafetensorsFile.open(path);
  try {
    const entries = [...file.header.tensors.values()].filter(({ dtype }) => dtype === 'I64');
    const [entry] = entries;
    if (entry === undefined || entries.length > 1) {
      throw invalidArgument(`tensors of I64 in ${path}`, entries.length, 'one, which has the ids of tokens');
    }
    const count = entry.shape.reduce((product, size) => product * size, 1);
    if (count !== tokens) {
      const field = `elements of tensor ${JSON.stringify(entry.name)} in ${path}`;
      throw invalidArgument(field, count, `${tokens}, the tokens of the batch`);
    }
    requireSize(path, entry);
    return await file.readIndices(entry, idsMax);
  } finally {
    file.close();
  }
}
