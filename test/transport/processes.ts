import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { packageRoot } from '../../native/locate.js';
import type { LinkOptions } from '../../services/transport/dial.js';
import type { TokenBatch } from '../../services/transport/link.js';
import { atEnd, batchOf, dial } from './support.js';

/** The shape of the token batches that workers of their own processes get here: 1 MiB of rows each. */
export const hidden = 1024;
export const rowCount = 512;
export const batchBytes = rowCount * hidden * 2;
export const creditBytes = 64 * 1024 * 1024;

/** A worker in a process of its own: it returns rows as they came. */
export async function forkWorker(
  environment: Record<string, string> = {},
): Promise<{ worker: ChildProcess; address: string }> {
  const path = join(packageRoot(), 'dist', 'bench', 'link-worker.js');
  const options = JSON.stringify({ hidden, creditBytes, messageBytesMax: batchBytes });
  const worker = fork(path, [options], { env: { ...process.env, ...environment } });
  atEnd(() => worker.kill('SIGKILL'));
  const [{ address }] = (await once(worker, 'message')) as [{ address: string }];
  return { worker, address };
}

export const dialProcess = (address: string, options: Partial<LinkOptions> = {}) =>
  dial(address, {
    router: 'test',
    worker: 'bench',
    modelFingerprint: 'bench',
    messageBytesMax: batchBytes,
    ...options,
  });

export const large = (): TokenBatch => batchOf({ rowCount, hidden });
