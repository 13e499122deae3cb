import type { RowDtype, SegmentRange } from '../../../native/index.js';
import type { ServedModel } from './models.js';

/** A tensor that requests may give and ask for. */
export interface TensorSpec {
  name: TensorName;
  /** As metadata tells it; rows may have any of `rowDtypes`. */
  datatype: 'BF16' | 'INT32' | 'FP32';
  /** Of one token. */
  tail: number[];
  /** As an input. */
  optional: boolean;
}

export const tensorNames = ['hidden_states', 'topk_ids', 'topk_weights'] as const;
export type TensorName = (typeof tensorNames)[number];

export const rowDtypes: readonly RowDtype[] = ['BF16', 'FP16', 'FP32'];

/** The tensors of a model, the same for inputs and outputs. */
export function tensorsOf(
  { routingShape, givenOnly }: ServedModel,
  hidden: number,
): Record<TensorName, TensorSpec> {
  return {
    hidden_states: { name: 'hidden_states', datatype: 'BF16', tail: [hidden], optional: false },
    topk_ids: { name: 'topk_ids', datatype: 'INT32', tail: routingShape, optional: !givenOnly },
    topk_weights: { name: 'topk_weights', datatype: 'FP32', tail: routingShape, optional: !givenOnly },
  };
}

/** Where the elements of a tensor lie: in a message, or in a segment of a client's. */
export type TensorMemory = Uint8Array | SegmentRange;

export function partOf(memory: TensorMemory, byteOffset: number, byteLength: number): TensorMemory {
  if (memory instanceof Uint8Array) return memory.subarray(byteOffset, byteOffset + byteLength);
  return { segment: memory.segment, byteOffset: memory.byteOffset + byteOffset, byteLength };
}

export function elementBytes(datatype: string): number {
  return datatype === 'FP32' || datatype === 'INT32' ? 4 : 2;
}

export function product(numbers: readonly number[]): number {
  return numbers.reduce((all, one) => all * one, 1);
}
