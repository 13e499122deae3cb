import type { SegmentRange } from '../../../native/index.js';
import { invalidArgument } from '../../common/errors.js';
import type { InferParameter } from '../../common/generated/inference/InferParameter.js';
import type { SharedRegions } from './regions.js';

const allowed = 'shared_memory_region, shared_memory_byte_size, shared_memory_offset';

export interface SharedContext {
  regions: SharedRegions;
  peer: string;
  /** Gets what gives the region back. */
  held: (() => void)[];
}

/** The shared memory that a tensor's parameters name; null: none. `field`: the tensor, for errors. Throws as SharedRegions.use. */
export function sharedMemoryOf(
  parameters: { [name: string]: InferParameter },
  field: string,
  { regions, peer, held }: SharedContext,
): SegmentRange | null {
  for (const name of Object.keys(parameters)) {
    if (!allowed.split(', ').includes(name)) {
      throw invalidArgument(`${field}.parameters`, name, allowed);
    }
  }
  const region = parameters.shared_memory_region?.stringParam;
  if (region === undefined) {
    const [name] = Object.keys(parameters);
    if (name === undefined) return null;
    throw invalidArgument(`${field}.parameters`, name, `${allowed}: the first is a string, and needed`);
  }
  const bytes = count(parameters, 'shared_memory_byte_size', field);
  const offset = 'shared_memory_offset' in parameters ? count(parameters, 'shared_memory_offset', field) : 0;
  const { range, done } = regions.use(region, offset, bytes, peer);
  held.push(done);
  return range;
}

function count(parameters: { [name: string]: InferParameter }, name: string, field: string): number {
  const value = parameters[name]?.int64Param ?? parameters[name]?.uint64Param;
  if (value !== undefined && Number.isSafeInteger(value) && value >= 0) return value;
  throw invalidArgument(
    `${field}.parameters.${name}`,
    value ?? 'missing',
    'a number of bytes, as an integer',
  );
}
