import type { ModelDescription, TokenIds } from '../client/index.js';
import { invalidArgument } from '../common/errors.js';
import { tokenIdsUseOf } from '../model/spec.js';
import type { BatchConfig } from './batch-options.js';

export interface BatchTokenIds {
  read: Exclude<TokenIds, Uint32Array>;
  close?(): Promise<void>;
}

/**
 * The ids of a batch's tokens: those of the file that is named, or of synthetic rows some that are made of the seed; null where they are
 * nothing to the layers, or rows of a file come without. Rejects with INVALID_ARGUMENT if layers choose experts by them and rows of a file
 * lack them.
 */
export async function tokenIdsOf(
  config: BatchConfig,
  model: ModelDescription,
  tokens: number,
): Promise<BatchTokenIds | null> {
  if (config.tokenIds !== null) {
    const { openTokenIds } = await import('../model/token-ids-file.js');
    return openTokenIds(config.tokenIds, tokens);
  }
  const { first, last } = config.layers ?? { first: 0, last: Number.POSITIVE_INFINITY };
  const layers = model.layers.filter(({ layer }) => layer >= first && layer <= last);
  const use = tokenIdsUseOf(layers);
  if (use === null || (config.input !== null && !use.needed)) return null;
  if (config.input !== null) {
    const allowed = `a file with the ids of the tokens, by which layers of ${model.name} choose experts`;
    throw invalidArgument('tokenIds', 'missing', allowed);
  }
  // Fibonacci hashing: every id is about equally frequent.
  const chanceOf = (token: number) => Math.imul(token + config.seed, 2_654_435_769) >>> 0;
  const ids = use.needed ? null : idsOfEachKind(layers);
  const idOf = (token: number) =>
    ids === null ? chanceOf(token) % use.below : ids[chanceOf(token) % ids.length]!;
  return { read: (first, count) => new Uint32Array(count).map((_, index) => idOf(first + index)) };
}

/** Ids of isolated tokens, and as many of one that is not isolated. */
function idsOfEachKind(layers: ModelDescription['layers']): number[] {
  const isolated = layers.flatMap((layer) => layer.isolated?.tokenIds ?? []);
  let other = 0;
  while (isolated.includes(other)) other += 1;
  return [...isolated, ...isolated.map(() => other)];
}
