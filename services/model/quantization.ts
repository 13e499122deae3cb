import { z } from 'zod';
import type { CodeDtype } from '../../native/index.js';
import { parseJsonFile } from './json-file.js';
import { fileInvalid } from './safetensors-header.js';

/** Where the codes of a quantised tensor are, and what they are multiplied by. */
export interface PackedNames {
  codes: string;
  /** Of several the first that is there. */
  scales: readonly string[];
  dtype: CodeDtype;
  /** Of the tensor as the file has it. */
  stored: string;
  /** The shape of the codes, of a tensor of this one. */
  shape(tensor: readonly number[]): number[];
  /** Rows and columns to a scale; null: the scales' own shape tells. */
  block: readonly [number, number] | null;
}

/** How the weights of a checkpoint are quantised. Those that are not have their own names. */
export type Quantization = (tensor: string) => readonly PackedNames[];

const same = (shape: readonly number[]) => [...shape];
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

const weightsSchema = z.object({
  num_bits: z.union([z.literal(4), z.literal(8)], { error: '4 or 8' }),
  type: z.enum(['int', 'float'], { error: '"int" or "float"' }),
  strategy: z.enum(['tensor', 'channel', 'group', 'block'], {
    error: '"tensor", "channel", "group" or "block"',
  }),
  group_size: z.int().nullish(),
  block_structure: counts.nullish(),
  symmetric: z.literal(true, { error: 'true: weights with zero points are not supported' }),
  actorder: z
    .union([z.null(), z.literal(false)], { error: 'none: reordered columns are not supported' })
    .optional(),
});

const compressedSchema = z.object({
  format: z.enum(['pack-quantized', 'int-quantized', 'float-quantized', 'naive-quantized'], {
    error: '"pack-quantized", "int-quantized", "float-quantized" or "naive-quantized"',
  }),
  config_groups: z
    .record(z.string(), z.object({ weights: weightsSchema }))
    .refine((groups) => Object.keys(groups).length === 1, 'one group'),
});

const methodSchema = z.object({
  quant_method: z.enum(['fp8', 'mxfp4', 'compressed-tensors'], {
    error: '"fp8", "mxfp4" or "compressed-tensors"',
  }),
});

const none: Quantization = () => [];

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
    case 'fp8':
      return fp8(within(fp8Schema).weight_block_size ?? null);
    case 'mxfp4':
      return (tensor) => [
        {
          codes: `${tensor}_blocks`,
          scales: [`${tensor}_scales`],
          dtype: 'F4_E2M1',
          stored: 'U8',
          shape: blocksOf32,
          block: [1, 32],
        },
      ];
    case 'compressed-tensors':
      return compressed(configFile, within(compressedSchema));
  }
}

function fp8(block: readonly [number, number] | null): Quantization {
  return (tensor) => [
    {
      codes: tensor,
      scales: [`${tensor}_scale_inv`, `${tensor}_scale`],
      dtype: 'F8_E4M3',
      stored: 'F8_E4M3',
      shape: same,
      block,
    },
  ];
}

function compressed(
  configFile: string,
  { format, config_groups: groups }: z.infer<typeof compressedSchema>,
): Quantization {
  const [{ weights }] = Object.values(groups) as [{ weights: z.infer<typeof weightsSchema> }];
  const { num_bits: bits, type, strategy, group_size: group, block_structure: structure } = weights;
  if (type === 'float') {
    if (bits !== 8) throw unsupported(configFile, `${bits} bits of float`);
    return fp8(strategy === 'block' ? (structure ?? null) : null);
  }
  const block = strategy === 'group' && group ? ([1, group] as const) : null;
  const packed = format === 'pack-quantized';
  if (!packed && bits !== 8) throw unsupported(configFile, `${bits} bits in the format ${format}`);
  return (tensor) => [
    {
      codes: packed ? `${tensor}_packed` : tensor,
      scales: [`${tensor}_scale`],
      dtype: !packed ? 'I8' : bits === 4 ? 'U4' : 'U8',
      stored: packed ? 'I32' : 'I8',
      shape: packed ? words(32 / bits) : same,
      block,
    },
  ];
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
    ...['.scales', '.qweight', '.qzeros'].map((suffix) => `${base}${suffix}`),
  ];
}
