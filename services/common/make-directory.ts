import { mkdir, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';

/** Makes a directory, and those above it. Node's own recursive `mkdir` goes round for ever in a directory that takes none, such as /proc. */
export async function makeDirectory(path: string, mode?: number): Promise<void> {
  const whole = resolve(path);
  if (await stat(whole).catch(() => null)) return;
  await makeDirectory(dirname(whole), mode);
  await mkdir(whole, { mode }).catch((error: NodeJS.ErrnoException) => {
    // Somebody else was as quick.
    if (error.code !== 'EEXIST') throw error;
  });
}
