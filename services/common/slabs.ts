import { native } from '../../native/index.js';
import { systemClock } from '../runtime/system.js';

/** How long slab memory is kept that nobody needs. */
const trimMs = 10_000;
let trimming = false;

/** Bounds the slabs of this process, and gives what a busy time has left of them back to the system. For processes that serve. */
export function boundSlabs(options: Parameters<typeof native.configure>[0]): void {
  native.configure(options);
  // Tests start several services in a process.
  if (trimming) return;
  trimming = true;
  systemClock.every(trimMs, () => native.trimSlabs()).unref();
}
