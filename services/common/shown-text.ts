import { z } from 'zod';
import { unshowable } from './errors.js';

/** Text of a file that is shown on a terminal. */
export function shownText(charactersMin: number, charactersMax: number) {
  const error = `${charactersMin} to ${charactersMax} characters, none of them control or format characters`;
  return z
    .string({ error })
    .min(charactersMin, { error })
    .max(charactersMax, { error })
    .refine((value) => !unshowable.test(value), { error });
}
