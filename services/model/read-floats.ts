import { native, type TensorSource } from '../../native/index.js';
import { nonFinite } from './finite.js';

/** The values of a tensor as they are stored. */
export async function readFloats(source: TensorSource): Promise<Float32Array> {
  const slab = await native.readFloats(source);
  const bytes = slab.view();
  const values = new Float32Array(bytes.slice().buffer);
  native.endView(bytes);
  slab.release();
  return values;
}

/** The same, of what a gate chooses by beside its matrices. Rejects with MODEL_INVALID, which names file and tensor, for NaN and infinity: no choice can be made by them. */
export async function readFinite(source: TensorSource): Promise<Float32Array> {
  const values = await readFloats(source);
  const count = values.reduce((sum, value) => sum + (Number.isFinite(value) ? 0 : 1), 0);
  if (count > 0 && source.kind === 'file') throw nonFinite(source, count, 'finite numbers');
  return values;
}

/** The same; null of nothing. */
export async function readFiniteOrNull(source: TensorSource | null): Promise<Float32Array | null> {
  return source === null ? null : await readFinite(source);
}
