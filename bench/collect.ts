/**
 * Loaded into a process in front of its program (--import): at SIGUSR2 the process collects its whole heap and prints what is
 * left of it, `{"event":"collected","heapBytes":N,"v8Bytes":N}`: what is alive, buffers included, and what V8 keeps for its heap.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { isMainThread } from 'node:worker_threads';

/** What finalizers of one collection let go of is left to the next. */
const collections = 3;

// Threads get no signals.
if (isMainThread) {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  process.on('SIGUSR2', async () => {
    for (let left = collections; left > 0; left -= 1) {
      collect();
      await nextTurn();
    }
    const { heapUsed, heapTotal, external } = process.memoryUsage();
    const left = { event: 'collected', heapBytes: heapUsed + external, v8Bytes: heapTotal };
    process.stdout.write(`${JSON.stringify(left)}\n`);
  });
}
