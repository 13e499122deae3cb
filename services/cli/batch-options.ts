import { z } from 'zod';
import type { ForwardOptions, ModelDescription } from '../client/index.js';
import { deadlineMsMax, uint32Max } from '../client/options.js';
import { decimal, humanCount, seed, text, toggle } from '../common/config.js';
import { type Preset, presets } from '../model/synthetic.js';
import { chunkTokensMax } from '../transport/chunk-size.js';
import { transportChoices } from '../transport/link.js';
import type { SyntheticBatch } from './synthetic-rows.js';

const verifyTokens = 32;

/** "3" or "0-3". */
const layerRange = () =>
  z.preprocess(
    (value) => {
      const match = /^(\d+)(?:-(\d+))?$/.exec(String(value));
      return match ? { first: Number(match[1]), last: Number(match[2] ?? match[1]) } : value;
    },
    z
      .object({ first: z.number(), last: z.number() }, { error: 'a layer such as 1, or layers such as 0-3' })
      .refine(({ last }) => last <= uint32Max, { error: `layers up to ${uint32Max}` })
      .refine(({ first, last }) => first <= last, { error: 'layers in ascending order, such as 0-3' }),
  );

/** `--verify` alone means a sample of `usual` tokens. */
export const sampleSize = (usual: number) => {
  const sizes = new Map<unknown, number | null>([
    [true, usual],
    ['true', usual],
    [false, null],
    ['false', null],
  ]);
  return z.preprocess(
    (value) => (sizes.has(value) ? sizes.get(value) : value),
    humanCount(1, 65_536, 'true, false, or a number of tokens').nullable(),
  );
};

/** What a batch is and how it goes through the model: for every command that submits one. */
export const batchFields = {
  input: text().nullable().default(null),
  tensor: text().nullable().default(null),
  tokenIds: text().nullable().default(null),
  output: text().nullable().default(null),
  sequences: humanCount(1, uint32Max).nullable().default(null),
  length: humanCount(1, uint32Max).nullable().default(null),
  skew: decimal(0, 10).nullable().default(null),
  seed: seed().default(7),
  layers: layerRange().nullable().default(null),
  norm: toggle().default(true),
  residual: toggle().default(true),
  combine: z.enum(['exact', 'partial']).default('exact'),
  feedback: toggle().nullable().default(null),
  refuseNonFinite: toggle().default(false),
  returnRouting: text().nullable().default(null),
  record: text().nullable().default(null),
  chunkTokens: humanCount(0, chunkTokensMax).nullable().default(null),
  deadline: decimal(0.001, deadlineMsMax / 1000)
    .nullable()
    .default(null),
  transport: z.enum(transportChoices).default('auto'),
  verify: sampleSize(verifyTokens).default(null),
};

/** Coordinators have keys of these names, of the model. */
export const batchNamesInEnvironment = { layers: 'batchLayers', seed: 'batchSeed' } as const;

export const batchHelp = {
  input: ['file', 'rows to send: .safetensors, or raw little-endian BF16 (default: synthetic rows)'],
  tensor: ['name', 'tensor of a .safetensors input (default: its only one)'],
  tokenIds: [
    'file',
    'ids of the tokens, for layers that choose experts by them, or have some for images: I64 of a .safetensors, or raw uint32 (default: for synthetic rows, made of the seed)',
  ],
  output: ['file', 'where the answers go: .safetensors, or raw little-endian BF16; -: standard output'],
  sequences: ['n', "sequences of the batch (default: the input's shape, or the preset's)"],
  length: ['n', "tokens per sequence (default: the input's shape, or the preset's)"],
  skew: ['exponent', "Zipf exponent of synthetic rows, 0 is even (default: the preset's)"],
  seed: ['n', 'seed of synthetic rows and of the verified sample'],
  layers: ['range', 'model layers, such as 1 or 0-3 (default: all)'],
  norm: [null, 'leave out the RMSNorm in front of the gate'],
  residual: [null, 'leave out adding the input of each layer to its output'],
  combine: ['mode', 'exact: bit-identical whatever the placement; partial: fewer bytes return'],
  feedback: [null, 'selection bias from the load feedback loop (default: as the cluster is configured)'],
  refuseNonFinite: [
    null,
    'fail at the first token that holds NaN or infinity, sent or after a layer, instead of counting them',
  ],
  returnRouting: ['file', 'write the chosen experts and weights, as JSON lines'],
  record: ['file', 'write the load of the experts, and a sample of the choices, for switchyard plan'],
  chunkTokens: ['n', "tokens per chunk of the pipeline (default: 0, the router's choice)"],
  deadline: ['seconds', 'end the batch with an error after this time'],
  transport: ['way', 'rows to and from routers: auto (UCX where both ends have it), ucx or grpc'],
  verify: [
    '[tokens]',
    `recompute a sample in float64 by an independent reference (default: ${verifyTokens} tokens)`,
  ],
} as const;

const batchSchema = z.object(batchFields);
export type BatchConfig = z.infer<typeof batchSchema>;

/** The synthetic batch that a configuration means for a model; a preset brings its own shape. */
export function syntheticBatch(config: BatchConfig, model: ModelDescription): SyntheticBatch {
  const preset: Preset = presets[model.name as keyof typeof presets] ?? presets.tiny;
  return {
    sequences: config.sequences ?? preset.sequences,
    length: config.length ?? preset.length,
    skew: config.skew ?? preset.skew,
    topics: preset.topics,
    seed: config.seed,
  };
}

export function forwardOptions(config: BatchConfig): ForwardOptions {
  return {
    norm: config.norm,
    residual: config.residual,
    combine: config.combine,
    transport: config.transport,
    refuseNonFinite: config.refuseNonFinite,
    ...(config.sequences !== null && { sequences: config.sequences }),
    ...(config.length !== null && { length: config.length }),
    ...(config.layers && { layers: config.layers }),
    ...(config.feedback !== null && { feedback: config.feedback }),
    ...(config.chunkTokens !== null && { chunkTokens: config.chunkTokens }),
    ...(config.deadline !== null && { deadlineMs: Math.ceil(config.deadline * 1000) }),
  };
}
