import { native, type TensorSource } from '../../native/index.js';

/** The values of a tensor as they are stored. */
export async function readFloats(source: TensorSource): Promise<Float32Array> {
  const slab = await native.readFloats(source);
  const bytes = slab.view();
  const values = new Float32Array(bytes.slice().buffer);
  native.endView(bytes);
  slab.release();
  return values;
}

/** The same; null of nothing. */
export async function readFloatsOrNull(source: TensorSource | null): Promise<Float32Array | null> {
  return source === null ? null : await readFloats(source);
}
