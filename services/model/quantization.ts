import { z } from 'zod';
import type { CodeDtype } from '../../native/index.js';
import { parseJsonFile } from './json-file.js';
import {
  type CompressedConfig,
  type CompressedFormat,
  type CompressedWeights,
  compressedSchema,
  fp8Schema,
  methodSchema,
  mxfp4Schema,
} from './quantization-config.js';
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
const halves = (shape: readonly number[]) => [...shape.slice(0, -1), shape.at(-1)! / 2];
/** Groups of 32 with two codes a byte. */
const blocksOf32 = (shape: readonly number[]) => [...shape.slice(0, -1), shape.at(-1)! / 32, 16];
/** So many codes side by side in an int32. */
const words = (codes: number) => (shape: readonly number[]) => [
  ...shape.slice(0, -1),
  Math.ceil(shape.at(-1)! / codes),
];

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
      return (tensor) => [fp8(tensor, block === undefined ? [fp8Block, ...blocks] : blocks), fp4(tensor)];
    }
    case 'mxfp4':
      within(mxfp4Schema);
      return (tensor) => [
        {
          codes: `${tensor}_blocks`,
          scales: [`${tensor}_scales`],
          ...mxfp4,
          stored: 'U8',
          shape: blocksOf32,
        },
      ];
    case 'compressed-tensors':
      return compressed(configFile, within(compressedSchema));
  }
}

/** Of floats: nothing is taken from them, and blocks are side by side. */
const unshifted = { zeros: null, groups: null, needed: [] } as const;

const mxfp4 = { ...unshifted, dtype: 'F4_E2M1', rowCodes: allOf, blocks: [[1, 32]] } as const;

const floatScales = (tensor: string) => [
  `${tensor}_scale_inv`,
  `${tensor}_scale`,
  tensor.replace(/\.weight$/, '.scale'),
];

/** Experts of DeepSeek-V4 beside FP8: MXFP4, whose codes have the tensor's own name. */
function fp4(tensor: string): PackedNames {
  return { codes: tensor, scales: floatScales(tensor), ...mxfp4, stored: 'I8', shape: halves };
}

function fp8(tensor: string, blocks: readonly ScaleBlock[]): PackedNames {
  return {
    codes: tensor,
    scales: floatScales(tensor),
    ...unshifted,
    dtype: 'F8_E4M3',
    stored: 'F8_E4M3',
    shape: same,
    rowCodes: allOf,
    blocks,
  };
}

function compressed(configFile: string, config: CompressedConfig): Quantization {
  const groups = Object.values(config.config_groups).flatMap(({ weights, format }) => {
    if (!weights) return [];
    const its = format ?? config.format;
    if (its === 'mixed-precision')
      throw fileInvalid(configFile, null, 'quantization_config.format', its, 'a format in every group');
    return [groupOf(configFile, its, weights)];
  });
  return (tensor) => groups.map((group) => group(tensor));
}

function groupOf(
  configFile: string,
  format: CompressedFormat,
  weights: CompressedWeights,
): (tensor: string) => PackedNames {
  const { num_bits: bits, type, symmetric, actorder } = weights;
  const blocks = [blockOf(configFile, weights)];
  if (type === 'float') {
    if (!symmetric) throw unsupported(configFile, 'symmetric', 'false', 'true, of floats');
    if (bits === 8) return (tensor) => fp8(tensor, blocks);
    if (format !== 'mxfp4-pack-quantized')
      throw unsupported(configFile, 'num_bits', `${bits}`, '8, of floats in this format');
    return (tensor) => ({ ...fp4(tensor), codes: `${tensor}_packed`, stored: 'U8' });
  }
  // Integers of few bits may lie in bytes, too.
  const packed = format === 'pack-quantized';
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
  { strategy, group_size: size, block_structure: structure }: CompressedWeights,
): ScaleBlock {
  switch (strategy ?? (size ? (size > 0 ? 'group' : 'channel') : 'tensor')) {
    case 'tensor':
      return perTensor;
    case 'channel':
      return perChannel;
    case 'group':
      if (size && size > 0) return [1, size];
      throw unsupported(configFile, 'group_size', `${size}`, 'at least 1, as the strategy is "group"');
    case 'block':
      if (structure) return structure;
      throw unsupported(configFile, 'block_structure', undefined, 'two sizes, as the strategy is "block"');
  }
}

function unsupported(configFile: string, key: string, value: string | undefined, allowed: string) {
  return fileInvalid(configFile, null, `quantization_config: ${key} of weights`, value, allowed);
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
