import { isFloat32Array, isUint32Array } from 'node:util/types';
import { z } from 'zod';
import { batchIdAllowed, batchIdPattern } from '../common/batch-id.js';
import { invalidArgument } from '../common/errors.js';
import { checkBy } from '../common/schema-issue.js';
import { tokenCharactersMax } from '../common/token.js';
import { traceparentAllowed, traceparentPattern } from '../common/traceparent.js';
import { chunkTokensMax } from '../transport/chunk-size.js';
import { transportChoices } from '../transport/link.js';
import type { TokenIds } from './forward.js';
import { deadlineMsMax, uint32Max } from './options.js';
import { shown } from './shown.js';

const whole = (min: number, max: number) => {
  const error = `whole numbers from ${min} to ${max}`;
  return z.number({ error }).int({ error }).min(min, { error }).max(max, { error }).optional();
};
const flag = z.boolean({ error: 'true, false' }).optional();
const transport = z.enum(transportChoices, { error: transportChoices.join(', ') }).optional();
const milliseconds = whole(1, deadlineMsMax);
const isSignal = (value: unknown) =>
  typeof (value as AbortSignal | null)?.aborted === 'boolean' &&
  typeof (value as AbortSignal).addEventListener === 'function';
const given = (what: string, check: (value: unknown) => boolean) =>
  z.custom(check, { error: what }).optional();

const signal = given('an AbortSignal', isSignal);
const layer = whole(0, uint32Max).unwrap();
const batch = {
  batchId: z.string({ error: batchIdAllowed }).regex(batchIdPattern, { error: batchIdAllowed }).optional(),
  layers: z
    .strictObject({ first: layer, last: layer }, { error: 'an object with first and last' })
    .optional(),
  norm: flag,
  residual: flag,
  combine: z.enum(['exact', 'partial'], { error: 'exact, partial' }).optional(),
  feedback: flag,
  returnRouting: flag,
  refuseNonFinite: flag,
  chunkTokens: whole(0, chunkTokensMax),
  deadlineMs: whole(0, deadlineMsMax),
  traceparent: z
    .string({ error: traceparentAllowed })
    .regex(traceparentPattern, { error: traceparentAllowed })
    .optional(),
  signal,
};
const streams = { transport, routers: whole(1, uint32Max) };
const file = z.string({ error: 'the path of a PEM file' });
const tlsAllowed = 'an object with ca, and with cert and key together or neither; null';
const object = { error: 'an object of options' };

const schemas = {
  connect: z.strictObject(
    {
      token: z
        .string({ error: 'a text, null' })
        .regex(/^[\x21-\x7e]+$/, { error: 'printable ASCII without spaces, and no end of line' })
        .max(tokenCharactersMax, { error: `at most ${tokenCharactersMax} characters` })
        .nullish(),
      tls: z
        .strictObject(
          { ca: file, cert: file.nullish(), key: file.nullish(), allowPlaintextRows: flag },
          { error: tlsAllowed },
        )
        .refine(({ cert, key }) => ((cert ?? null) === null) === ((key ?? null) === null), {
          error: tlsAllowed,
        })
        .nullish(),
      timeoutMs: milliseconds,
      transport,
    },
    object,
  ),
  forward: z.strictObject(
    {
      ...batch,
      ...streams,
      tensor: z.string({ error: 'the name of a tensor' }).optional(),
      sequences: whole(1, uint32Max),
      length: whole(1, uint32Max),
      given: given(
        'a function of the first token and their number, which returns { experts: Uint32Array, weights: Float32Array }',
        (value) => typeof value === 'function',
      ),
      tokenIds: given(
        'a Uint32Array of one id a token, or a function of the first token and their number, which returns one',
        (value) => isUint32Array(value) || typeof value === 'function',
      ),
    },
    object,
  ),
  describeCluster: z.strictObject({ placement: flag }, object),
  waitUntilReady: z.strictObject(
    { timeoutMs: whole(0, deadlineMsMax).unwrap(), routers: whole(0, uint32Max), signal },
    object,
  ),
  session: z.strictObject(streams, object),
  sessionBatch: z.strictObject(
    {
      ...batch,
      given: z
        .strictObject(
          {
            experts: z.custom(isUint32Array, { error: 'a Uint32Array' }),
            weights: z.custom(isFloat32Array, { error: 'a Float32Array' }),
          },
          { error: 'an object with experts and weights' },
        )
        .optional(),
      tokenIds: given('a Uint32Array of one id a token', isUint32Array),
    },
    object,
  ),
};

/** Whose value is not to be seen. */
const secrets = new Set(['token']);

/** Throws INVALID_ARGUMENT with the option, its value, and what is allowed. */
export function checkOptions(call: keyof typeof schemas, options: unknown): void {
  const { issue } = checkBy(schemas[call], options);
  if (issue === null) return;
  const { key, value, allowed } = issue;
  throw invalidArgument(key || 'options', secrets.has(key) ? 'not shown' : shown(value), allowed);
}

/** Throws INVALID_ARGUMENT unless an array has an id for each token. */
export function checkTokenIds(tokenIds: TokenIds | undefined, tokens: number): void {
  if (!isUint32Array(tokenIds) || tokenIds.length === tokens) return;
  throw invalidArgument('tokenIds.length', tokenIds.length, `${tokens}, the tokens of the batch`);
}
