import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach } from '@jest/globals';
import type { SwitchyardError } from '../../services/common/errors.js';

export const fixtures = join(dirname(fileURLToPath(import.meta.url)), '..', 'fixtures');

/** An empty directory, removed after the test. */
export async function temporaryDirectory(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'switchyard-model-'));
  directories.push(directory);
  return directory;
}

const directories: string[] = [];
afterEach(async () => {
  for (const directory of directories.splice(0)) await rm(directory, { recursive: true, force: true });
});

/** The bytes of a safetensors file with any header, valid or not. `length`: what stands in front of it. */
export function safetensorsBytes(header: string, data: Uint8Array, length?: bigint): Uint8Array {
  const text = new TextEncoder().encode(header);
  const bytes = new Uint8Array(8 + text.byteLength + data.byteLength);
  new DataView(bytes.buffer).setBigUint64(0, length ?? BigInt(text.byteLength), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.byteLength);
  return bytes;
}

export async function writeSafetensors(
  path: string,
  tensors: Record<string, { dtype: string; shape: number[]; data: Uint8Array }>,
): Promise<void> {
  let begin = 0;
  const entries = Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
    const end = begin + data.byteLength;
    const entry = { dtype, shape, data_offsets: [begin, end] };
    begin = end;
    return [name, entry];
  });
  const data = Buffer.concat(Object.values(tensors).map((tensor) => tensor.data));
  await writeFile(path, safetensorsBytes(JSON.stringify(Object.fromEntries(entries)), data));
}

/** The error that `action` throws or rejects with. */
export async function failure(action: () => unknown): Promise<SwitchyardError> {
  try {
    await action();
  } catch (error) {
    return error as SwitchyardError;
  }
  throw new Error('nothing was thrown');
}
