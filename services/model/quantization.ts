import { z } from 'zod';
import type { CodeDtype } from '../../native/index.js';
import { parseJsonFile } from './json-file.js';
import { fileInvalid } from './safetensors-header.js';

/** Outputs and inputs of a matrix that share a scale; null: all of them. */
export type ScaleBlock = readonly [outputs: number | null, inputs: number | null];

/** How a tensor may be quantised: where its codes are, and what makes values of them. */
export interface PackedNames {
  codes: string;
  /** Of several the first that is there. */
  scales: readonly string[];
  /** Zero points, and the group of each input: of integers, where they are there. */
  zeros: string | null;
  groups: string | null;
  /** Of the two those without which values would be wrong. */
  needed: readonly string[];
  dtype: CodeDtype;
  /** Of the tensor as the file has it. */
  stored: string;
  /** The shape of the codes, of a tensor of this one. */
  shape(tensor: readonly number[]): number[];
  /** Codes in a row of so many columns: a row ends with a whole element. */
  rowCodes(columns: number): number;
  /** Of several the first that goes with the shape of the scales. */
  blocks: readonly ScaleBlock[];
}

/** The ways in which the weights of a checkpoint may be quantised: which of them a tensor is, its dtype and shapes tell. Those that are not have their own names. */
export type Quantization = (tensor: string) => readonly PackedNames[];

const same = (shape: readonly number[]) => [...shape];
const allOf = (columns: number) => columns;
/** Groups of 32 with two codes a byte. */
const blocksOf32 = (shape: readonly number[]) => [...shape.slice(0, -1), shape.at(-1)! / 32, 16];
/** So many codes side by side in an int32. */
const words = (codes: number) => (shape: readonly number[]) => [
  ...shape.slice(0, -1),
  Math.ceil(shape.at(-1)! / codes),
];

const counts = z.tuple([z.int().min(1), z.int().min(1)], { error: 'two sizes of at least 1' });

const fp8Schema = z.object({
  fmt: z.literal('e4m3', { error: '"e4m3"' }).nullish(),
  weight_block_size: counts.nullish(),
});

/** What `format` may be of a group, and of all of them. */
const formats = ['pack-quantized', 'int-quantized', 'float-quantized', 'naive-quantized'] as const;
const oneOf = (values: readonly string[]) => values.map((value) => JSON.stringify(value)).join(', ');
const nothing = (error: string) =>
  z
    .record(z.string(), z.unknown(), { error })
    .refine((value) => Object.keys(value).length === 0 || value.format === 'dense', { error })
    .nullish();

/** Of a key that changes no value here. */
const unread = z.unknown().optional();

/** As QuantizationArgs of compressed-tensors has them; what is not given is as it is there. */
const weightsSchema = z.strictObject({
  num_bits: z.union([z.literal(4), z.literal(8)], { error: '4 or 8' }).default(8),
  type: z.enum(['int', 'float'], { error: '"int" or "float"' }).default('int'),
  strategy: z
    .enum(['tensor', 'channel', 'group', 'block'], { error: '"tensor", "channel", "group" or "block"' })
    .nullish(),
  group_size: z.int().min(-1).nullish(),
  block_structure: counts.nullish(),
  symmetric: z.boolean({ error: 'true or false' }).default(true),
  actorder: z
    .union([z.boolean(), z.enum(['group', 'weight', 'static', 'dynamic'])], {
      error: '"group", "weight", "static", "dynamic", true or false',
    })
    .nullish(),
  // What made the codes, not what they mean.
  dynamic: unread,
  observer: unread,
  observer_kwargs: unread,
  scale_dtype: unread,
  zp_dtype: unread,
});

/** Activations are computed as they are, whatever they were quantised to; what is not quantised has no scales. */
const groupSchema = z.strictObject({
  weights: weightsSchema,
  format: z.enum(formats, { error: oneOf(formats) }).nullish(),
  targets: unread,
  input_activations: unread,
  output_activations: unread,
});

const compressedSchema = z.strictObject({
  quant_method: unread,
  format: z.enum([...formats, 'mixed-precision'], { error: oneOf([...formats, 'mixed-precision']) }),
  config_groups: z
    .record(z.string(), groupSchema)
    .refine((groups) => Object.keys(groups).length > 0, 'one group at least'),
  sparsity_config: nothing('none: sparse weights are not supported'),
  transform_config: nothing('none: weights that were transformed are not supported'),
  ignore: unread,
  kv_cache_scheme: unread,
  global_compression_ratio: unread,
  quantization_status: unread,
  run_compressed: unread,
  version: unread,
});

const methodSchema = z.object({
  quant_method: z.enum(['fp8', 'mxfp4', 'compressed-tensors'], {
    error: '"fp8", "mxfp4" or "compressed-tensors"',
  }),
});

const none: Quantization = () => [];

const perTensor: ScaleBlock = [null, null];
const perChannel: ScaleBlock = [1, null];
/** Of FP8 where the configuration does not tell, as transformers has it. */
const fp8Block: ScaleBlock = [128, 128];

/**
 * Reads the quantization_config of config.json. Throws MODEL_INVALID, which names the key, for what is not understood: values would be
 * served as if they were the weights.
 */
export function readQuantization(configFile: string, config: unknown): Quantization {
  if (config === undefined || config === null) return none;
  const within = <T>(schema: z.ZodType<T>): T =>
    parseJsonFile(configFile, { quantization_config: config }, z.object({ quantization_config: schema }))
      .quantization_config;
  switch (within(methodSchema).quant_method) {
    case 'fp8': {
      const { weight_block_size: block } = within(fp8Schema);
      const blocks = block ? [block] : [perTensor, perChannel];
      return (tensor) => [fp8(tensor, block === undefined ? [fp8Block, ...blocks] : blocks)];
    }
    case 'mxfp4':
      return (tensor) => [
        {
          codes: `${tensor}_blocks`,
          scales: [`${tensor}_scales`],
          ...unshifted,
          dtype: 'F4_E2M1',
          stored: 'U8',
          shape: blocksOf32,
          rowCodes: allOf,
          blocks: [[1, 32]],
        },
      ];
    case 'compressed-tensors':
      return compressed(configFile, within(compressedSchema));
  }
}

/** Of floats: nothing is taken from them, and blocks are side by side. */
const unshifted = { zeros: null, groups: null, needed: [] } as const;

function fp8(tensor: string, blocks: readonly ScaleBlock[]): PackedNames {
  return {
    codes: tensor,
    scales: [`${tensor}_scale_inv`, `${tensor}_scale`, tensor.replace(/\.weight$/, '.scale')],
    ...unshifted,
    dtype: 'F8_E4M3',
    stored: 'F8_E4M3',
    shape: same,
    rowCodes: allOf,
    blocks,
  };
}

function compressed(configFile: string, config: z.output<typeof compressedSchema>): Quantization {
  const groups = Object.values(config.config_groups).map(({ weights, format }) => {
    const its = format ?? config.format;
    if (its === 'mixed-precision')
      throw fileInvalid(configFile, null, 'quantization_config.format', its, 'a format in every group');
    return groupOf(configFile, its, weights);
  });
  return (tensor) => groups.map((group) => group(tensor));
}

function groupOf(
  configFile: string,
  format: (typeof formats)[number],
  weights: z.output<typeof weightsSchema>,
): (tensor: string) => PackedNames {
  const { num_bits: bits, type, symmetric, actorder } = weights;
  const blocks = [blockOf(configFile, weights)];
  if (type === 'float') {
    if (bits !== 8) throw unsupported(configFile, `${bits} bits of float`);
    if (!symmetric) throw unsupported(configFile, 'floats with zero points');
    return (tensor) => fp8(tensor, blocks);
  }
  const packed = format === 'pack-quantized';
  if (!packed && bits !== 8) throw unsupported(configFile, `${bits} bits in the format ${format}`);
  const perWord = 32 / bits;
  const ordered = actorder === true || actorder === 'group' || actorder === 'dynamic';
  return (tensor) => {
    const [zeros, groups] = [`${tensor}_zero_point`, `${tensor}_g_idx`];
    return {
      codes: packed ? `${tensor}_packed` : tensor,
      scales: [`${tensor}_scale`],
      zeros,
      groups,
      needed: [...(symmetric ? [] : [zeros]), ...(ordered ? [groups] : [])],
      dtype: !packed ? 'I8' : bits === 4 ? 'U4' : 'U8',
      stored: packed ? 'I32' : 'I8',
      shape: packed ? words(perWord) : same,
      rowCodes: packed ? (columns) => Math.ceil(columns / perWord) * perWord : allOf,
      blocks,
    };
  };
}

function blockOf(
  configFile: string,
  { strategy, group_size: size, block_structure: structure }: z.output<typeof weightsSchema>,
): ScaleBlock {
  const missing = (key: string, allowed: string) =>
    fileInvalid(configFile, null, `quantization_config: ${key} of weights`, undefined, allowed);
  switch (strategy ?? (size ? (size > 0 ? 'group' : 'channel') : 'tensor')) {
    case 'tensor':
      return perTensor;
    case 'channel':
      return perChannel;
    case 'group':
      if (!size || size < 1) throw missing('group_size', 'at least 1, as the strategy is "group"');
      return [1, size];
    case 'block':
      if (!structure) throw missing('block_structure', 'two sizes, as the strategy is "block"');
      return structure;
  }
}

function unsupported(configFile: string, value: string) {
  return fileInvalid(configFile, null, 'quantization_config', value, 'integers of 4 or 8 bits, floats of 8');
}

/**
 * Names of the tensors that stand beside a quantised one, as its scales or its packed values: compressed-tensors and FP8
 * write the first ones, MXFP4 the next, GPTQ and AWQ the last.
 */
export function quantisedNames(tensor: string): string[] {
  const base = tensor.replace(/\.weight$/, '');
  return [
    ...['_scale', '_scale_inv', '_scales', '_packed', '_blocks'].map((suffix) => `${tensor}${suffix}`),
    ...['.scale', '.scales', '.qweight', '.qzeros'].map((suffix) => `${base}${suffix}`),
  ];
}
