import type { Family } from './family.js';
import { layouts, numbered } from './layouts.js';
import { mixtral } from './mixtral.js';

/** Mixtral's fields and block. Residuals are taken behind the norm, with factors. */
export const minimax: Family = {
  ...mixtral,
  name: 'minimax',
  types: ['minimax'],
  bare: true,
  layouts: layouts(
    { router: 'block_sparse_moe.gate.weight', experts: numbered('block_sparse_moe.experts.#') },
    {},
  ),
};
