import type { RowDtype, SegmentRange } from '../../../native/index.js';
import type { ServedModel } from './models.js';

/** A tensor that requests may give and ask for. */
export interface TensorSpec {
  name: TensorName;
  /** As metadata tells it; rows may have any of `rowDtypes`. */
  datatype: 'BF16' | 'INT32' | 'INT64' | 'FP32';
  /** Of one token. */
  tail: number[];
  /** As an input. */
  optional: boolean;
  /** As an input: told of by metadata. */
  described: boolean;
  /** Whether requests may ask for it. */
  answered: boolean;
}

export type TensorName = 'hidden_states' | 'token_ids' | 'topk_ids' | 'topk_weights';
/** The tensors of a model by their names. */
export type TensorSpecs = Partial<Record<TensorName, TensorSpec>>;

/** Names come from anybody: those that every object has are no tensors. */
export function specOf(specs: TensorSpecs, name: string): TensorSpec | undefined {
  return Object.hasOwn(specs, name) ? specs[name as TensorName] : undefined;
}

export const rowDtypes: readonly RowDtype[] = ['BF16', 'FP16', 'FP32'];

export function tensorsOf({ routingShape, tokenIds }: ServedModel, hidden: number): TensorSpecs {
  const routing = { tail: routingShape, optional: true, described: false, answered: true };
  return {
    hidden_states: {
      name: 'hidden_states',
      datatype: 'BF16',
      tail: [hidden],
      optional: false,
      described: true,
      answered: true,
    },
    ...(tokenIds !== null && {
      token_ids: {
        name: 'token_ids',
        datatype: 'INT64',
        tail: [],
        optional: !tokenIds.needed,
        described: true,
        answered: false,
      },
    }),
    topk_ids: { name: 'topk_ids', datatype: 'INT32', ...routing },
    topk_weights: { name: 'topk_weights', datatype: 'FP32', ...routing },
  };
}

/** Where the elements of a tensor lie: in a message, or in a segment of a client's. */
export type TensorMemory = Uint8Array | SegmentRange;

export function partOf(memory: TensorMemory, byteOffset: number, byteLength: number): TensorMemory {
  if (memory instanceof Uint8Array) return memory.subarray(byteOffset, byteOffset + byteLength);
  return { segment: memory.segment, byteOffset: memory.byteOffset + byteOffset, byteLength };
}

export function elementBytes(datatype: string): number {
  if (datatype === 'INT64') return 8;
  return datatype === 'FP32' || datatype === 'INT32' ? 4 : 2;
}

export function product(numbers: readonly number[]): number {
  return numbers.reduce((all, one) => all * one, 1);
}
