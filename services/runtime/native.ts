import { native } from '../../native/index.js';
import type { Runtime } from './runtime.js';
import { systemClock, systemRandom, usageBeside } from './system.js';

/** The runtime of a process that serves: the system's time and chance, and the addon's rows. Importing it loads the addon. */
export const nativeRuntime: Runtime = {
  clock: systemClock,
  random: systemRandom,
  rows: native,
  usage: usageBeside(() => (native.ucx?.stats().lookedNanoseconds ?? 0) / 1e9),
};
