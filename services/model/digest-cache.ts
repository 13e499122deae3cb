import { createHash, randomUUID } from 'node:crypto';
import { open, rename, rm, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { isAbsolute, join, resolve } from 'node:path';
import { z } from 'zod';
import type { WeightFile } from '../../native/index.js';
import { makeDirectory } from '../common/make-directory.js';

/** A file that changed so shortly before it was hashed may change again without another time. */
const settledMs = 2_000;
const entryBytesMax = 16 * 1024;

const entrySchema = z.object({
  version: z.literal(2),
  path: z.string(),
  identity: z.string(),
  digest: z.string().regex(/^[0-9a-f]{64}$/),
});

/**
 * Remembers digests of files by path and identity, in the user's cache directory, so that the processes of a host hash a
 * file once and not again when they restart. Whatever is wrong with the cache costs time and nothing else.
 */
export class DigestCache {
  private readonly directory = cacheDirectory();

  async get(file: WeightFile): Promise<string | null> {
    if (this.directory === null) return null;
    try {
      const entry = entrySchema.parse(JSON.parse(await readOwn(this.entryPath(file))));
      const found = entry.path === resolve(file.path) && entry.identity === file.identity;
      return found ? entry.digest : null;
    } catch {
      return null;
    }
  }

  /** @param startedMs when the hashing began, in milliseconds since 1970. */
  async put(file: WeightFile, digest: string, startedMs: number): Promise<void> {
    if (this.directory === null || file.changedMs > startedMs - settledMs) return;
    const path = this.entryPath(file);
    const temporary = `${path}.${randomUUID()}`;
    const entry = { version: 2, path: resolve(file.path), identity: file.identity, digest };
    try {
      await makeDirectory(this.directory, 0o700);
      await writeFile(temporary, JSON.stringify(entry), { mode: 0o600, flag: 'wx' });
      await rename(temporary, path);
    } catch {
      await rm(temporary, { force: true }).catch(() => {});
    }
  }

  private entryPath(file: WeightFile): string {
    const name = createHash('sha256').update(resolve(file.path)).digest('hex');
    return join(this.directory!, `${name}.json`);
  }
}

/** As the XDG base directory specification says; null where the user has no home. */
function cacheDirectory(): string | null {
  const { XDG_CACHE_HOME: given } = process.env;
  try {
    const base = given !== undefined && isAbsolute(given) ? given : join(homedir(), '.cache');
    return join(base, 'switchyard', 'digests');
  } catch {
    return null;
  }
}

/** The text of a small file that nobody but this user can have written. */
async function readOwn(path: string): Promise<string> {
  const handle = await open(path, 'r');
  try {
    const { uid, mode, size } = await handle.stat();
    if (uid !== process.getuid?.() || (mode & 0o022) !== 0 || size > entryBytesMax)
      throw new Error('not ours');
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}
