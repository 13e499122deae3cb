import { SwitchyardError } from '../common/errors.js';
import { untilSignal } from '../common/lifecycle.js';

/** Aborts at the first SIGINT or SIGTERM, so that what was begun is ended in order; a second one ends the process. */
export function abortOnSignal(): AbortSignal {
  const controller = new AbortController();
  untilSignal().then((name) => controller.abort(new SwitchyardError('CANCELLED', `interrupted by ${name}`)));
  return controller.signal;
}
