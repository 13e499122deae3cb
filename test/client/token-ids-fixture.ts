import { join } from 'node:path';
import { expectedOf, fixtures } from '../model/support.js';

/** A family's checkpoint whose layers look at the ids of tokens, what its layers give, and the options of a coordinator that serves it. */
export async function tokenIdsFixture(family: string) {
  const directory = join(fixtures, 'families', family);
  const expected = await expectedOf(join(directory, 'expected.safetensors'));
  const tokenIds = expected.tokenIds!;
  const tokens = tokenIds.length;
  const hidden = expected.input.length / tokens;
  // Nothing of the shape of other test clusters.
  const none = { hidden: undefined, ffn: undefined, experts: undefined, topK: undefined, layers: undefined };
  return { expected, tokenIds, tokens, hidden, checkpoint: { model: directory, ...none } };
}
