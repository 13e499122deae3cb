import { readFile, stat } from 'node:fs/promises';
import type { z } from 'zod';
import { SwitchyardError, shownJson } from '../common/errors.js';
import { checkBy } from '../common/schema-issue.js';
import { refuseLfsPointer } from './lfs.js';
import { fileInvalid } from './safetensors-header.js';

/** An index of the largest known checkpoints is below 20 MB. */
const jsonBytesMax = 256 * 1024 * 1024;

/** The content of a JSON file of bounded size. Rejects with MODEL_INVALID. */
export async function readJson(path: string): Promise<unknown> {
  const bytes = await readBytes(path);
  refuseLfsPointer(path, bytes);
  const text = bytes.toString('utf8');
  try {
    return JSON.parse(text);
  } catch (error) {
    const quoted = quoteNumberNames(text);
    if (quoted === null) throw notJson(path, error);
    try {
      return JSON.parse(quoted);
    } catch (reason) {
      throw notJson(path, reason);
    }
  }
}

async function readBytes(path: string): Promise<Buffer> {
  try {
    const file = await stat(path);
    // Of a FIFO the size is 0, and whoever opens one may wait for ever.
    if (!file.isFile()) throw new Error('it is no regular file');
    const { size } = file;
    if (size > jsonBytesMax) throw new Error(`it has ${size} bytes; allowed: up to ${jsonBytesMax}`);
    return await readFile(path);
  } catch (error) {
    throw notJson(path, error);
  }
}

function notJson(path: string, error: unknown): SwitchyardError {
  const message = `${path}: cannot be read as JSON: ${(error as Error).message}`;
  return new SwitchyardError('MODEL_INVALID', message, { file: path });
}

/**
 * The text with the NaN, Infinity and -Infinity that Python writes as texts, which no schema takes for numbers; null if it
 * has none. A string that does not end is taken to the end, so that the time is linear in the length.
 */
function quoteNumberNames(text: string): string | null {
  let found = false;
  const quoted = text.replace(/"(?:[^"\\]|\\.)*(?:"|$)|-?Infinity|NaN/gs, (token) => {
    if (token.startsWith('"')) return token;
    found = true;
    return `"${token}"`;
  });
  return found ? quoted : null;
}

/** `json` checked by `schema`. Throws MODEL_INVALID that names the file, the key, the value, what is allowed. */
export function parseJsonFile<T>(file: string, json: unknown, schema: z.ZodType<T>): T {
  const { data, issue } = checkBy(schema, json);
  if (issue === null) return data;
  const { key, value, allowed } = issue;
  throw fileInvalid(file, null, key || 'content', shownJson(value), allowed);
}
