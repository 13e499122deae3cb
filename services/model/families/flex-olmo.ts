import type { Family } from './family.js';
import { olmoe } from './olmoe.js';

/** OLMoE's block with norms behind it. */
export const flexOlmo: Family = { ...olmoe, name: 'flex_olmo', types: ['flex_olmo'], bare: true };
