import { type GateWeights, native, type Slab } from '../../native/index.js';
import { readFinite, readFiniteOrNull } from './read-floats.js';
import { type GateSource, type LayerSpec, routedExperts } from './spec.js';

/** What the gate alone multiplies rows by; null: nothing. */
export async function gateScaleOf({ rowNorm }: GateSource): Promise<Float32Array | null> {
  return rowNorm && (await readFinite(rowNorm.weight)).map((value) => value * rowNorm.factor);
}

/** Float32, as a GateSource has them. */
export interface GateSlabs {
  weight: Slab;
  /** Of the isolated experts; null: there are none. */
  isolated: Slab | null;
  sharedGate: Slab | null;
}

/** A layer's gate. The slabs are not kept, and `weight` may be written to. */
export async function createGate(
  source: GateSource,
  layer: Pick<LayerSpec, 'experts' | 'routing' | 'isolated' | 'shared'>,
  hidden: number,
  { weight, isolated, sharedGate }: GateSlabs,
): Promise<GateWeights> {
  const { routing, shared } = layer;
  const scale = await gateScaleOf(source);
  if (scale !== null) scaleColumns(weight, scale);
  const experts = routedExperts(layer);
  const options = {
    experts,
    hidden,
    logitBias: await readFiniteOrNull(source.logitBias),
    selectionBias: await selectionBiasOf(source, experts, layer.isolated?.experts ?? 0),
    routing,
    shared: { weights: Float32Array.from(shared, (each) => each.weight), gate: sharedGate },
    expertScale: await readFiniteOrNull(source.expertScale),
    rowEpsilon: source.rowNorm?.epsilon ?? null,
    tokenExperts: (await source.tokenExperts?.read()) ?? null,
    isolated: layer.isolated && {
      experts: layer.isolated.experts,
      tokenIds: Uint32Array.from(layer.isolated.tokenIds),
    },
  };
  if (isolated === null) return native.createGate({ weight, ...options });
  const joined = join(weight, isolated);
  try {
    return native.createGate({ weight: joined, ...options });
  } finally {
    joined.release();
  }
}

/** Of all routed experts, the isolated ones last; null: of none. */
async function selectionBiasOf(
  { selectionBias, isolated }: GateSource,
  experts: number,
  isolatedExperts: number,
): Promise<Float32Array | null> {
  const [common, own] = [selectionBias, isolated?.selectionBias ?? null];
  if (common === null && own === null) return null;
  const joined = new Float32Array(experts);
  if (common !== null) joined.set(await readFinite(common));
  if (own !== null) joined.set(await readFinite(own), experts - isolatedExperts);
  return joined;
}

function join(first: Slab, second: Slab): Slab {
  const joined = native.allocateSlab(first.byteLength + second.byteLength);
  const target = joined.view();
  let at = 0;
  for (const part of [first, second]) {
    const bytes = part.view();
    target.set(bytes, at);
    native.endView(bytes);
    at += part.byteLength;
  }
  native.endView(target);
  return joined;
}

/** Rows that are scaled, times a matrix, are the rows times the matrix whose columns are. */
function scaleColumns(weight: Slab, scale: Float32Array): void {
  const bytes = weight.view();
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  for (let at = 0; at < values.length; at += 1) values[at]! *= scale[at % scale.length]!;
  native.endView(bytes);
}
