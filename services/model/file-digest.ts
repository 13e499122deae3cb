import type { FileHandle } from 'node:fs/promises';
import { Worker } from 'node:worker_threads';
import { builtFile } from '../../native/locate.js';
import { usableCores } from '../common/machine.js';
import { createBlake3 } from './blake3.js';
import { blockBytes, digestBytes, type HashJob, hashBlocks } from './hash-blocks.js';

/** More threads than this read no disk faster. */
const threadsMax = 8;
const progressMs = 200;

/**
 * The BLAKE3 of the BLAKE3 of each block of a file: blocks are hashed side by side, by threads of their own, so that the
 * disk is what limits it and the event loop goes on. Rejects if the file cannot be read, with INTERNAL if nothing can be hashed here.
 * @param onBytes called now and then with the bytes hashed since the last call.
 */
export async function digestOf(
  { fd }: FileHandle,
  byteLength: number,
  onBytes: (bytes: number) => void,
): Promise<string> {
  const hasher = createBlake3();
  const blocks = Math.ceil(byteLength / blockBytes);
  const job: HashJob = {
    descriptor: fd,
    byteLength,
    next: new Int32Array(new SharedArrayBuffer(4)),
    digests: new Uint8Array(new SharedArrayBuffer(blocks * digestBytes)),
  };
  // One block takes less time than a thread takes to start.
  if (blocks === 1) hashBlocks(job);
  else await hashInThreads(job, Math.min(blocks, threadsMax, usableCores()), onBytes);
  return hasher.update(Buffer.from(job.digests)).digest('hex');
}

async function hashInThreads(job: HashJob, threads: number, onBytes: (bytes: number) => void): Promise<void> {
  let told = 0;
  const tell = () => {
    const done = Math.min(Math.max(Atomics.load(job.next, 0) - threads, 0) * blockBytes, job.byteLength);
    onBytes(done - told);
    told = done;
  };
  const timer = setInterval(tell, progressMs);
  try {
    const results = await Promise.allSettled(Array.from({ length: threads }, () => hashInThread(job)));
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  } finally {
    clearInterval(timer);
  }
  onBytes(job.byteLength - told);
}

function hashInThread(job: HashJob): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(builtFile('services', 'model', 'hash-thread.js'), { workerData: job });
    worker.once('error', (error) => {
      // The others shall not go on for nothing.
      Atomics.store(job.next, 0, job.digests.byteLength / digestBytes);
      reject(error);
    });
    worker.once('exit', () => resolve());
  });
}
