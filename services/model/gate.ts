import { type GateWeights, native, type Slab } from '../../native/index.js';
import { readFloats, readFloatsOrNull } from './read-floats.js';
import type { GateSource, LayerSpec } from './spec.js';

/** What the gate alone multiplies rows by; null: nothing. */
export async function gateScaleOf({ rowNorm }: GateSource): Promise<Float32Array | null> {
  return rowNorm && (await readFloats(rowNorm.weight)).map((value) => value * rowNorm.factor);
}

/** A layer's gate. `weight` and `sharedGate`: float32, as `source` has them; they are not kept, and `weight` may be written to. */
export async function createGate(
  source: GateSource,
  { experts, routing, shared }: Pick<LayerSpec, 'experts' | 'routing' | 'shared'>,
  hidden: number,
  weight: Slab,
  sharedGate: Slab | null,
): Promise<GateWeights> {
  const scale = await gateScaleOf(source);
  if (scale !== null) scaleColumns(weight, scale);
  return native.createGate({
    weight,
    experts: experts - shared.length,
    hidden,
    logitBias: await readFloatsOrNull(source.logitBias),
    selectionBias: await readFloatsOrNull(source.selectionBias),
    routing,
    shared: { weights: Float32Array.from(shared, (each) => each.weight), gate: sharedGate },
    expertScale: await readFloatsOrNull(source.expertScale),
    rowEpsilon: source.rowNorm?.epsilon ?? null,
    tokenExperts: (await source.tokenExperts?.read()) ?? null,
  });
}

/** Rows that are scaled, times a matrix, are the rows times the matrix whose columns are. */
function scaleColumns(weight: Slab, scale: Float32Array): void {
  const bytes = weight.view();
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  for (let at = 0; at < values.length; at += 1) values[at]! *= scale[at % scale.length]!;
  native.endView(bytes);
}
