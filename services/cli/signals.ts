import { SwitchyardError } from '../common/errors.js';
import { untilSignal } from '../common/lifecycle.js';

/**
 * Aborts at the first SIGINT, SIGTERM or SIGHUP, so that what was begun is ended in order; a second one ends the process, as
 * does the time that the order may take.
 */
export function abortOnSignal(endMsMax: number): AbortSignal {
  const controller = new AbortController();
  untilSignal().then((name) => {
    // The terminal may be gone, and what has no reader any more must not cut the order short.
    for (const output of [process.stdout, process.stderr])
      output.removeAllListeners('error').on('error', () => {});
    controller.abort(new SwitchyardError('CANCELLED', `interrupted by ${name}`));
    // Only native code ends a process whose threads wait for a reader of its output.
    return import('../../native/index.js').then(({ native }) => native.endWithin(endMsMax, 1));
  });
  return controller.signal;
}

/** Of a batch that has failed: its calls and its output. */
export const batchEndMsMax = 3_000;

/** To be called when a batch has failed: a read of its input that never returns would keep the process. */
export async function endDespiteReads(): Promise<void> {
  const { native } = await import('../../native/index.js');
  native.endWithin(batchEndMsMax, 1);
}
