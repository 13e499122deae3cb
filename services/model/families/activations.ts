import type { FfnSpec } from '../spec.js';

/** swiglu whose gate is at most `limit`, and whose up is within it. */
export function clamped(ffn: number, limit: number): FfnSpec {
  const glu = { alpha: 1, gateMax: limit, activationMax: null, upMax: limit, upOffset: 0 };
  return { ffn, activation: 'swiglu', glu, biased: false };
}

/** As gpt-oss: (clamp(up) + 1) * g * sigmoid(alpha * g), of a bounded gate g. */
export function ossGlu(ffn: number, alpha: number, limit: number, biased: boolean): FfnSpec {
  const glu = { alpha, gateMax: limit, activationMax: null, upMax: limit, upOffset: 1 };
  return { ffn, activation: 'swiglu', glu, biased };
}
