import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');

/** Collects the whole heap: views of slabs keep their memory until they are collected. */
export const collectGarbage = runInNewContext('gc') as () => void;
