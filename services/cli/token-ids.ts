import type { ModelDescription, TokenIds } from '../client/index.js';
import { invalidArgument } from '../common/errors.js';
import { vocabularyOf } from '../model/spec.js';
import type { BatchConfig } from './batch-options.js';

export interface BatchTokenIds {
  read: Exclude<TokenIds, Uint32Array>;
  close?(): Promise<void>;
}

/**
 * The ids of a batch's tokens: those of the file that is named, or of synthetic rows some that are made of the seed; null where no
 * layer chooses experts by them. Rejects with INVALID_ARGUMENT if rows of a file lack them.
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
  const vocabulary = vocabularyOf(model.layers.filter(({ layer }) => layer >= first && layer <= last));
  if (vocabulary === 0) return null;
  if (config.input !== null) {
    const allowed = `a file with the ids of the tokens, by which layers of ${model.name} choose experts`;
    throw invalidArgument('tokenIds', 'missing', allowed);
  }
  // Fibonacci hashing: every id is about equally frequent.
  const idOf = (token: number) => (Math.imul(token + config.seed, 2_654_435_769) >>> 0) % vocabulary;
  return { read: (first, count) => new Uint32Array(count).map((_, index) => idOf(first + index)) };
}
