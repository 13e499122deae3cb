import { invalidArgument, SwitchyardError } from '../common/errors.js';
import { tokenIdBytes } from '../transport/chunk-size.js';
import { openForReading } from './rows-file.js';
import { SafetensorsFile } from './safetensors.js';
import { requireSize, type TensorEntry } from './safetensors-header.js';

const idsMax = 2 ** 32;
/** Of several tensors this one has the ids. */
const usualName = 'token_ids';

/** Ids of tokens in a file. */
export interface TokenIdsReader {
  /** Those of `count` tokens from `first` on. */
  read(first: number, count: number): Promise<Uint32Array>;
  close(): Promise<void>;
}

/**
 * Opens a file of the ids of `tokens` tokens: a tensor of I64 of a .safetensors file, its only one or the one named token_ids, or raw
 * little-endian uint32. Rejects with INVALID_ARGUMENT (file does not fit) or MODEL_INVALID (not a valid safetensors file), and so
 * does reading, with DATA_LOSS if the file has become shorter.
 */
export function openTokenIds(path: string, tokens: number): Promise<TokenIdsReader> {
  return path.endsWith('.safetensors') ? openTensor(path, tokens) : openRaw(path, tokens);
}

async function openRaw(path: string, tokens: number): Promise<TokenIdsReader> {
  const handle = await openForReading(path, 'tokenIds');
  const { size } = await handle.stat();
  if (size !== tokens * tokenIdBytes) {
    await handle.close();
    const allowed = `${tokens * tokenIdBytes} bytes: ${tokens} tokens x uint32`;
    throw invalidArgument(`the size of ${path}`, `${size} bytes`, allowed);
  }
  return {
    read: async (first, count) => {
      const ids = new Uint32Array(count);
      const bytes = new Uint8Array(ids.buffer);
      for (let done = 0; done < bytes.length; ) {
        const { bytesRead } = await handle.read(
          bytes,
          done,
          bytes.length - done,
          first * tokenIdBytes + done,
        );
        if (bytesRead === 0) throw new SwitchyardError('DATA_LOSS', `${path} has become shorter`, { path });
        done += bytesRead;
      }
      return ids;
    },
    close: () => handle.close(),
  };
}

async function openTensor(path: string, tokens: number): Promise<TokenIdsReader> {
  const file = await SafetensorsFile.open(path);
  try {
    const entry = findTensor(path, [...file.header.tensors.values()]);
    const count = entry.shape.reduce((product, size) => product * size, 1);
    if (count !== tokens) {
      const field = `elements of tensor ${JSON.stringify(entry.name)} in ${path}`;
      throw invalidArgument(field, count, `${tokens}, the tokens of the batch`);
    }
    requireSize(path, entry);
    return {
      read: (first, count) => file.readIndices(entry, idsMax, first, count),
      close: async () => file.close(),
    };
  } catch (error) {
    file.close();
    throw error;
  }
}

function findTensor(path: string, all: readonly TensorEntry[]): TensorEntry {
  const entries = all.filter(({ dtype }) => dtype === 'I64');
  const named = entries.find(({ name }) => name === usualName);
  if (named !== undefined) return named;
  if (entries.length === 1) return entries[0]!;
  const allowed = `one, which has the ids of tokens, or one named ${usualName}`;
  throw invalidArgument(`tensors of I64 in ${path}`, entries.length, allowed);
}
