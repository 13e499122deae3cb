import { createHash } from 'node:crypto';
import { z } from 'zod';
import type { ExpertSource, RoutingSpec, TensorSource } from '../../native/index.js';
import { softmax } from './families/routers.js';
import { expertWeightBytes, modelLimits, size } from './limits.js';
import type { GateSource, ModelSpec, ModelTensors, NormSource, SyntheticSpec } from './spec.js';

/** A model with the batch that goes with it. */
export interface Preset {
  model: SyntheticSpec;
  sequences: number;
  /** Tokens per sequence. */
  length: number;
  chunkTokens: number;
  /** Zipf exponent of the tokens' topics. */
  skew: number;
  topics: number;
}

/** Few tokens are alone in their topic, yet each differs enough from its topic that a small bias can move it. */
const load = { skew: 2.5, topics: 64 };

/** With these gates every layer of `demo` falls unevenly on four workers: balancedness begins at 0.57. */
const modelSeed = 27;

export const presets = {
  tiny: {
    model: model('tiny', { hidden: 256, ffn: 512, experts: 8, topK: 2, layers: 2, activation: 'swiglu' }),
    sequences: 8,
    length: 256,
    chunkTokens: 256,
    ...load,
  },
  demo: {
    model: model('demo', { hidden: 1024, ffn: 2816, experts: 16, topK: 2, layers: 4, activation: 'swiglu' }),
    sequences: 32,
    length: 512,
    chunkTokens: 512,
    ...load,
  },
  fine: {
    model: model('fine', { hidden: 4096, ffn: 1536, experts: 32, topK: 8, layers: 1, activation: 'swiglu' }),
    sequences: 16,
    length: 512,
    chunkTokens: 1024,
    ...load,
  },
  reference: {
    model: model('reference', {
      hidden: 4096,
      ffn: 16384,
      experts: 16,
      topK: 2,
      layers: 1,
      activation: 'gelu',
    }),
    sequences: 128,
    length: 10_000,
    chunkTokens: 1024,
    ...load,
  },
} as const satisfies Record<string, Preset>;

export type PresetName = keyof typeof presets;
export const presetNames = Object.keys(presets) as PresetName[];

function model(name: string, shape: Omit<SyntheticSpec, 'name' | 'seed'>): SyntheticSpec {
  return { name, ...shape, seed: modelSeed };
}

export const syntheticSchema: z.ZodType<SyntheticSpec> = z
  .strictObject({
    name: z.string({ error: 'a name of 1 to 64 characters' }).min(1).max(64),
    hidden: size(modelLimits.hidden),
    ffn: size(modelLimits.ffn),
    experts: size(modelLimits.experts),
    topK: size(modelLimits.topK),
    layers: size(modelLimits.layers),
    activation: z.enum(['swiglu', 'gelu'], { error: '"swiglu" or "gelu"' }),
    seed: z.custom<number>((seed) => Number.isSafeInteger(seed) && (seed as number) >= 0, {
      error: 'an integer from 0 to 2^53 - 1',
    }),
  })
  .superRefine((spec, context) => {
    if (spec.topK > spec.experts) {
      const message = `an integer from 1 to ${spec.experts}, the number of experts`;
      context.addIssue({ code: 'custom', path: ['topK'], message });
    }
    if (expertWeightBytes(spec) > modelLimits.expertBytes) {
      const message = `a size with which an expert has up to ${modelLimits.expertBytes} bytes`;
      context.addIssue({ code: 'custom', path: ['ffn'], message });
    }
  });

/** Changes when the native generator, or a scale below, does: then equal specs no longer mean equal weights. */
const generatorVersion = 1;

/** Softmax over `topK` chosen of all experts, renormalised, as Mixtral does it. */
export function softmaxRouting(topK: number): RoutingSpec {
  return softmax(topK, true);
}

/** Routed by `softmaxRouting`. */
export function syntheticModel(spec: SyntheticSpec): { spec: ModelSpec; tensors: ModelTensors } {
  const ordered = [spec.hidden, spec.ffn, spec.experts, spec.topK, spec.layers, spec.activation, spec.seed];
  const fingerprint = createHash('sha256')
    .update(JSON.stringify(['synthetic', generatorVersion, ...ordered]))
    .digest('hex');
  const modelSpec: ModelSpec = {
    name: spec.name,
    family: 'synthetic',
    fingerprint,
    hidden: spec.hidden,
    topK: spec.topK,
    weighsInput: false,
    bare: false,
    layers: Array.from({ length: spec.layers }, (_, layer) => ({
      layer,
      experts: spec.experts,
      routing: softmaxRouting(spec.topK),
      vocabulary: 0,
      identities: 0,
      expert: { ffn: spec.ffn, activation: spec.activation, glu: null, biased: false },
      isolated: null,
      shared: [],
    })),
    expertBytes: expertWeightBytes(spec),
    latentBytes: 0,
    normEpsilon: 1e-6,
    source: { kind: 'synthetic', spec },
  };
  return { spec: modelSpec, tensors: new SyntheticTensors(spec) };
}

/**
 * Standard deviation of the gate's logits on rows of unit mean square. Below 1, softmax scores are nearly linear in the
 * logits, so that the feedback loop's bias moves tokens away from hot and cold experts alike.
 */
const gateLogitDeviation = 0.5;

class SyntheticTensors implements ModelTensors {
  constructor(private readonly spec: SyntheticSpec) {}

  outputNorm(): null {
    return null;
  }

  norm(layer: number): NormSource {
    const { seed, hidden } = this.spec;
    const stream = tensorStream(`layers.${layer}.norm`);
    const weight = {
      kind: 'synthetic',
      seed,
      stream,
      rows: 1,
      columns: hidden,
      scale: 0.25,
      center: 1,
    } as const;
    return { weight, offset: 0 };
  }

  gate(layer: number): GateSource {
    const weight = this.#matrix(
      `layers.${layer}.gate`,
      this.spec.experts,
      this.spec.hidden,
      gateLogitDeviation,
    );
    return {
      weight,
      logitBias: null,
      selectionBias: null,
      isolated: null,
      sharedGate: null,
      expertScale: null,
      rowNorm: null,
      tokenExperts: null,
    };
  }

  expert(layer: number, expert: number): ExpertSource {
    const { hidden, ffn, activation } = this.spec;
    const name = `layers.${layer}.experts.${expert}`;
    return {
      activation,
      glu: null,
      bias: null,
      gate: activation === 'swiglu' ? this.#matrix(`${name}.gate`, ffn, hidden, 1) : null,
      up: this.#matrix(`${name}.up`, ffn, hidden, 1),
      down: this.#matrix(`${name}.down`, hidden, ffn, 1),
    };
  }

  close(): void {}

  /** Uniform weights of variance deviation² / columns, so that products with rows of unit mean square stay O(1). */
  #matrix(name: string, rows: number, columns: number, deviation: number): TensorSource {
    const scale = deviation * Math.sqrt(3 / columns);
    const stream = tensorStream(name);
    return { kind: 'synthetic', seed: this.spec.seed, stream, rows, columns, scale, center: 0 };
  }
}

/** A number below 2^53 that names a tensor to the generator. */
export function tensorStream(name: string): number {
  return Number(createHash('sha256').update(name).digest().readBigUInt64LE(0) >> 11n);
}
