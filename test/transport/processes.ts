import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import type { LinkEndOptions } from '../../bench/link-end.js';
import { benchSecret } from '../../bench/serve-links.js';
import { builtFile } from '../../native/locate.js';
import type { LinkOptions } from '../../services/transport/dial.js';
import type { TokenBatch } from '../../services/transport/link.js';
import { linkKey } from '../../services/transport/link-key.js';
import { atEnd, batchOf, dial, metaOf } from './support.js';

/** The shape of the token batches that workers of their own processes get here: 1 MiB of rows each. */
export const hidden = 1024;
export const rowCount = 512;
export const batchBytes = rowCount * hidden * 2;
export const creditBytes = 64 * 1024 * 1024;

/** A worker in a process of its own: it returns rows as they came. */
export async function forkWorker(
  environment: Record<string, string> = {},
): Promise<{ worker: ChildProcess; address: string }> {
  const path = builtFile('bench', 'link-end.js');
  const options: LinkEndOptions = {
    hidden,
    creditBytes,
    messageBytesMax: batchBytes,
    transport: 'auto',
    worker: null,
  };
  const worker = fork(path, [JSON.stringify(options)], { env: { ...process.env, ...environment } });
  atEnd(() => worker.kill('SIGKILL'));
  const ended = once(worker, 'exit').then(([code]) => {
    throw new Error(`the worker ended with ${code} before it served`);
  });
  const [{ address }] = (await Promise.race([once(worker, 'message'), ended])) as [{ address: string }];
  ended.catch(() => {}); // From here on tests end it as they like.
  return { worker, address };
}

export const dialProcess = (address: string, options: Partial<LinkOptions> = {}) =>
  dial(address, {
    router: 'test',
    worker: 'bench',
    key: linkKey(benchSecret, options.router ?? 'test'),
    modelFingerprint: 'bench',
    resultBytesMax: batchBytes,
    ...options,
  });

/** Every second row of a slab: the worker's process gathers them where it has mapped this one's slabs. */
export const large = (): TokenBatch => ({
  rows: batchOf({ rowCount: 2 * rowCount, hidden }).rows,
  selected: Uint32Array.from({ length: rowCount }, (_, i) => 2 * i + 1),
  meta: metaOf({ rowCount, hidden }),
});
