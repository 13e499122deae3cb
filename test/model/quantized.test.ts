import { describe, expect, test } from '@jest/globals';
import { randomOf } from '../../bench/random.js';
import { native, type TensorSource } from '../../native/index.js';
import { openModel } from '../../services/model/load.js';
import { failure, type StoredTensor, smallNorm, writeCheckpoint } from './support.js';

/** Odd on purpose: rows of packed codes end within a word. */
const [hidden, ffn, experts] = [44, 20, 2];
const mixtral = {
  model_type: 'mixtral',
  hidden_size: hidden,
  intermediate_size: ffn,
  num_local_experts: experts,
  num_experts_per_tok: 1,
  num_hidden_layers: 1,
};
const block = 'model.layers.0.block_sparse_moe';

const bytesOf = (array: ArrayBufferView<ArrayBuffer>) =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
const floats = (shape: number[], values: ArrayLike<number>): StoredTensor => ({
  dtype: 'F32',
  shape,
  data: bytesOf(Float32Array.from(values)),
});
const words = (shape: number[], values: Uint32Array<ArrayBuffer>): StoredTensor => ({
  dtype: 'I32',
  shape,
  data: bytesOf(values),
});

/** A matrix [rows, columns] of integers of so many bits, and what is stored of it. */
interface Integers {
  bits: 4 | 8;
  /** Columns to a scale. */
  group: number;
  zeroPoints: boolean;
  /** The group of each column is told. */
  ordered: boolean;
}

const random = randomOf(7);
const integer = (low: number, high: number) => low + Math.floor(random() * (high - low + 1));

/** Side by side in words, along the columns, or along the rows where `down`; above their value by half the range. */
function pack(values: number[][], bits: number, down = false): Uint32Array<ArrayBuffer> {
  const [rows, columns, perWord] = [values.length, values[0]!.length, 32 / bits];
  const [height, width] = down ? [Math.ceil(rows / perWord), columns] : [rows, Math.ceil(columns / perWord)];
  const packed = new Uint32Array(height * width);
  for (let row = 0; row < rows; row += 1)
    for (let column = 0; column < columns; column += 1) {
      const code = values[row]![column]! + 2 ** (bits - 1);
      const [word, place] = down
        ? [Math.floor(row / perWord) * width + column, row % perWord]
        : [row * width + Math.floor(column / perWord), column % perWord];
      packed[word]! |= code << (place * bits);
    }
  return packed;
}

/** The tensors of a matrix as compressed-tensors packs it, and its values. */
function packed(name: string, rows: number, columns: number, { bits, group, zeroPoints, ordered }: Integers) {
  const half = 2 ** (bits - 1);
  const grid = <T>(width: number, make: () => T) =>
    Array.from({ length: rows }, () => Array.from({ length: width }, make));
  const groups = Math.ceil(columns / group);
  const codes = grid(columns, () => integer(-half, half - 1));
  const scales = grid(groups, () => integer(1, 100) / 512);
  const zeros = grid(groups, () => (zeroPoints ? integer(-half, half - 1) : 0));
  const groupOf = Array.from({ length: columns }, (_, column) =>
    ordered ? integer(0, groups - 1) : Math.floor(column / group),
  );
  const tensors: Record<string, StoredTensor> = {
    [`${name}_packed`]: words([rows, Math.ceil((columns * bits) / 32)], pack(codes, bits)),
    [`${name}_scale`]: floats([rows, groups], scales.flat()),
    ...(zeroPoints && {
      [`${name}_zero_point`]: words([Math.ceil((rows * bits) / 32), groups], pack(zeros, bits, true)),
    }),
    ...(ordered && { [`${name}_g_idx`]: words([columns], Uint32Array.from(groupOf)) }),
  };
  const values = codes.map((row, at) =>
    row.map((code, column) =>
      Math.fround((code - zeros[at]![groupOf[column]!]!) * scales[at]![groupOf[column]!]!),
    ),
  );
  return { tensors, values: values.flat() };
}

/** `make` gives the tensors and the values of each matrix. */
async function checkpoint(
  quantization: unknown,
  make: (
    name: string,
    rows: number,
    columns: number,
  ) => { tensors: Record<string, StoredTensor>; values: number[] },
) {
  const tensors: Record<string, StoredTensor> = {
    [smallNorm]: floats([hidden], new Array(hidden).fill(1)),
    [`${block}.gate.weight`]: floats([experts, hidden], new Array(experts * hidden).fill(1)),
  };
  const expected = new Map<string, number[]>();
  for (let expert = 0; expert < experts; expert += 1)
    for (const [name, rows, columns] of [
      ['w1', ffn, hidden],
      ['w3', ffn, hidden],
      ['w2', hidden, ffn],
    ] as const) {
      const made = make(`${block}.experts.${expert}.${name}.weight`, rows, columns);
      Object.assign(tensors, made.tensors);
      expected.set(`${expert}.${name}`, made.values);
    }
  const directory = await writeCheckpoint(tensors, { ...mixtral, quantization_config: quantization });
  return { directory, tensors, expected };
}

async function valuesOf(source: TensorSource): Promise<number[]> {
  const slab = await native.readFloats(source);
  try {
    return [...new Float32Array(new Uint8Array(slab.view()).buffer)];
  } finally {
    slab.release();
  }
}

/** Each matrix has the values that were stored, and goes into memory as what `bytes` of an expert say. */
async function expectValues(directory: string, expected: ReadonlyMap<string, number[]>): Promise<void> {
  const model = await openModel({ kind: 'checkpoint', directory });
  const backend = native.createCpuBackend({ threads: 1 });
  try {
    for (let expert = 0; expert < experts; expert += 1) {
      const source = model.expert(0, expert);
      expect(await valuesOf(source.gate!)).toEqual(expected.get(`${expert}.w1`));
      expect(await valuesOf(source.up)).toEqual(expected.get(`${expert}.w3`));
      expect(await valuesOf(source.down)).toEqual(expected.get(`${expert}.w2`));
      (await backend.load(source)).release();
    }
  } finally {
    backend.close();
    model.close();
  }
}

async function refusal(directory: string): Promise<string> {
  const error = await failure(() => openModel({ kind: 'checkpoint', directory }));
  expect(error).toMatchObject({ code: 'MODEL_INVALID' });
  return error.message;
}

/** Weights that are not quantised: all of them 1. */
function plainRows(name: string, rows: number, columns: number) {
  const values: number[] = new Array(rows * columns).fill(1);
  return { tensors: { [name]: floats([rows, columns], values) }, values };
}

/** A quantization_config of compressed-tensors. */
function compressed(weights: Record<string, unknown>, more: Record<string, unknown> = {}) {
  const all = { num_bits: 4, type: 'int', strategy: 'group', group_size: 8, symmetric: true, ...weights };
  return {
    quant_method: 'compressed-tensors',
    format: 'pack-quantized',
    config_groups: { all: { targets: ['Linear'], weights: all } },
    ...more,
  };
}

describe('integers of compressed-tensors', () => {
  const plain: Integers = { bits: 4, group: 8, zeroPoints: false, ordered: false };

  test.each<[string, Integers, Record<string, unknown>]>([
    ['of 4 bits, whose rows end within a word', plain, {}],
    ['of 8 bits', { ...plain, bits: 8 }, { num_bits: 8 }],
    ['with a scale for a row', { ...plain, group: 64 }, { strategy: 'channel', group_size: null }],
    ['of 4 bits with zero points', { ...plain, zeroPoints: true }, { symmetric: false }],
    [
      'of 8 bits with zero points',
      { ...plain, bits: 8, zeroPoints: true },
      { num_bits: 8, symmetric: false },
    ],
    ['in an order of their own', { ...plain, ordered: true }, { actorder: 'group' }],
    ['quantised in an order that is not stored', plain, { actorder: 'static' }],
    [
      'with all that is usual left out',
      plain,
      { symmetric: undefined, type: undefined, strategy: undefined },
    ],
    ['whose zero points the configuration does not mention', { ...plain, zeroPoints: true }, {}],
    ['whose order it does not mention', { ...plain, ordered: true }, {}],
  ])('%s', async (_, form, weights) => {
    const make = (name: string, rows: number, columns: number) => packed(name, rows, columns, form);
    const { directory, expected } = await checkpoint(compressed(weights), make);
    await expectValues(directory, expected);
  });

  test('zero points may be bytes, and be left in words alone where the codes are', async () => {
    const { directory, expected } = await checkpoint(
      compressed({ symmetric: false }),
      (name, rows, columns) => {
        const { tensors, values } = packed(name, rows, columns, plain);
        const zeros = new Int8Array(rows * Math.ceil(columns / 8));
        return {
          tensors: {
            ...tensors,
            [`${name}_zero_point`]: {
              dtype: 'I8',
              shape: [rows, Math.ceil(columns / 8)],
              data: bytesOf(zeros),
            },
          },
          values,
        };
      },
    );
    await expectValues(directory, expected);
  });

  test('of several groups: each tensor tells which it is of', async () => {
    const group = (num_bits: number, group_size: number, format?: string) => ({
      weights: { num_bits, type: 'int', strategy: 'group', group_size, symmetric: true },
      ...(format && { format }),
    });
    const mixed = (format: string, inGroup?: string) => ({
      quant_method: 'compressed-tensors',
      format,
      config_groups: { attention: group(8, 16, inGroup), experts: group(4, 8, inGroup) },
    });
    const make = (name: string, rows: number, columns: number) =>
      packed(name, rows, columns, name.includes('w2') ? { ...plain, bits: 8, group: 16 } : plain);
    for (const config of [mixed('pack-quantized'), mixed('mixed-precision', 'pack-quantized')]) {
      const { directory, expected } = await checkpoint(config, make);
      await expectValues(directory, expected);
    }
    const { directory } = await checkpoint(mixed('mixed-precision'), make);
    expect(await refusal(directory)).toContain('format is mixed-precision; allowed: a format in every group');
  });

  test.each<[string, Record<string, unknown>, Record<string, unknown>, RegExp]>([
    ['zero points that are not there', { symmetric: false }, {}, /w[123]\.weight_zero_point" is missing/],
    ['an order that is not there', { actorder: 'group' }, {}, /w[123]\.weight_g_idx" is missing/],
    ['no size of its groups', { group_size: null }, {}, /group_size of weights is null; allowed: at least 1/],
    [
      'blocks of no size',
      { strategy: 'block' },
      {},
      /block_structure of weights is missing; allowed: two sizes/,
    ],
    [
      'weights that were transformed',
      {},
      { transform_config: { config_groups: {} } },
      /transform_config is .*; allowed: none: weights that were transformed/,
    ],
    [
      'sparse weights',
      {},
      { sparsity_config: { format: 'sparse-24-bitmask' } },
      /sparsity_config is .*; allowed: none: sparse weights/,
    ],
    ['a key that is not known', { rotation: 3 }, {}, /weights\.rotation is 3; allowed: there is no such key/],
    [
      'a key of dense weights that is not known',
      {},
      { sparsity_config: { format: 'dense', rotation: 3 } },
      /sparsity_config\.rotation is 3; allowed: there is no such key/,
    ],
  ])('with %s are refused by name', async (_, weights, more, words) => {
    const make = (name: string, rows: number, columns: number) => packed(name, rows, columns, plain);
    const { directory } = await checkpoint(compressed(weights, more), make);
    expect(await refusal(directory)).toMatch(words);
  });

  test('of few bits may lie in bytes, and keys of later versions that are null and groups of activations alone say nothing', async () => {
    const bytes = compressed(
      { strategy: 'channel', group_size: null },
      { format: 'int-quantized', moe_sparsity_config: null },
    );
    const config_groups = {
      ...bytes.config_groups,
      attention: { targets: ['Attention'], weights: null, format: null },
    };
    const { directory, expected } = await checkpoint({ ...bytes, config_groups }, (name, rows, columns) => {
      const codes = Int8Array.from({ length: rows * columns }, () => integer(-8, 7));
      return {
        tensors: {
          [name]: { dtype: 'I8', shape: [rows, columns], data: bytesOf(codes) },
          [`${name}_scale`]: floats([rows, 1], new Array(rows).fill(0.25)),
        },
        values: Array.from(codes, (code) => code / 4),
      };
    });
    await expectValues(directory, expected);
  });

  test('zero points of another shape, and a group that is none, are refused by name', async () => {
    const make = (name: string, rows: number, columns: number) => {
      const { tensors, values } = packed(name, rows, columns, { ...plain, zeroPoints: true });
      return { tensors: { ...tensors, [`${name}_zero_point`]: words([1, 2], new Uint32Array(2)) }, values };
    };
    const { directory } = await checkpoint(compressed({ symmetric: false }), make);
    expect(await refusal(directory)).toMatch(/_zero_point": shape is \[1,2\]; allowed: 3 x 6 by the scales/);
  });
});

describe('MXFP4 in bytes', () => {
  const values = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];
  const fp8 = {
    quant_method: 'fp8',
    fmt: 'float8_e4m3fn',
    scale_fmt: 'ue8m0',
    weight_block_size: [128, 128],
  };
  const packed = compressed({ type: 'float', group_size: 32 }, { format: 'mxfp4-pack-quantized' });

  test.each<[string, unknown, string, string, string, string]>([
    ['beside FP8, as DeepSeek-V4 has its experts', fp8, 'weight', 'I8', 'scale', 'F8_E8M0'],
    ['of compressed-tensors', packed, 'weight_packed', 'U8', 'weight_scale', 'U8'],
  ])(
    '%s: the first code of two is the lower half',
    async (_, quantization, codesName, codesDtype, scaleName, scaleDtype) => {
      const { directory, expected } = await checkpoint(quantization, (name, rows, columns) => {
        const groups = Math.ceil(columns / 32);
        const codes = Array.from({ length: rows * columns }, () => integer(0, 15));
        const exponents = Array.from({ length: rows * groups }, () => integer(120, 130));
        const pairs = Uint8Array.from(
          { length: codes.length / 2 },
          (_, at) => codes[2 * at]! | (codes[2 * at + 1]! << 4),
        );
        const named = (end: string) => name.replace(/weight$/, end);
        return {
          tensors: {
            [named(codesName)]: { dtype: codesDtype, shape: [rows, columns / 2], data: pairs },
            [named(scaleName)]: {
              dtype: scaleDtype,
              shape: [rows, groups],
              data: Uint8Array.from(exponents),
            },
          },
          values: codes.map((code, at) => {
            const [row, column] = [Math.floor(at / columns), at % columns];
            return values[code]! * 2 ** (exponents[row * groups + Math.floor(column / 32)]! - 127);
          }),
        };
      });
      await expectValues(directory, expected);
    },
  );
});

describe('a key __proto__ of quantization_config', () => {
  const proto = JSON.parse('{ "__proto__": 3 }') as Record<string, unknown>;

  test.each<[string, Record<string, unknown>]>([
    ['', proto],
    ['.config_groups', { config_groups: { ...compressed({}).config_groups, ...proto } }],
    ['.config_groups.all', { config_groups: { all: { ...compressed({}).config_groups.all, ...proto } } }],
    ['.config_groups.all.weights', { config_groups: { all: { weights: proto } } }],
    ['.sparsity_config', { sparsity_config: { format: 'dense', ...proto } }],
  ])('is refused by name: quantization_config%s', async (key, more) => {
    const { directory } = await checkpoint(compressed({}, more), plainRows);
    expect(await refusal(directory)).toContain(`: quantization_config${key}.__proto__ is 3; allowed: `);
  });

  test.each(['sparsity_config', 'transform_config'])(
    'is something, where %s is to be nothing',
    async (key) => {
      const { directory } = await checkpoint(compressed({}, { [key]: proto }), plainRows);
      expect(await refusal(directory)).toContain(
        `quantization_config.${key} is {"__proto__":3}; allowed: none`,
      );
    },
  );
});

test('what says that nothing is sparse or transformed is understood', async () => {
  const dense = { format: 'dense', targets: ['Linear'], global_sparsity: 0.1, sparsity_structure: null };
  for (const more of [{ sparsity_config: dense }, { sparsity_config: {}, transform_config: {} }]) {
    const { directory, expected } = await checkpoint(compressed({}, more), plainRows);
    await expectValues(directory, expected);
  }
});

describe('keys of quantization_config that are not known', () => {
  test.each(['fp8', 'mxfp4', 'compressed-tensors'])(
    'are refused for %s, unless they are null',
    async (quant_method) => {
      const known = quant_method === 'compressed-tensors' ? compressed({}) : { quant_method };
      const { directory } = await checkpoint({ ...known, rotation: 3 }, plainRows);
      expect(await refusal(directory)).toMatch(
        /quantization_config\.rotation is 3; allowed: there is no such key/,
      );
      const { directory: other, expected } = await checkpoint({ ...known, rotation: null }, plainRows);
      await expectValues(other, expected);
    },
  );
});

describe('FP8 without the size of its blocks', () => {
  /** Codes of 1, and scales of so many rows and columns. */
  const coded =
    (shapeOf: (rows: number, columns: number) => [number, number]) =>
    (name: string, rows: number, columns: number) => {
      const shape = shapeOf(rows, columns);
      const tensors = {
        [name]: { dtype: 'F8_E4M3', shape: [rows, columns], data: new Uint8Array(rows * columns).fill(0x38) },
        [`${name}_scale_inv`]: floats(shape, new Array(shape[0] * shape[1]).fill(0.5)),
      };
      return { tensors, values: new Array(rows * columns).fill(0.5) };
    };

  test.each<[string, (rows: number, columns: number) => [number, number]]>([
    ['a scale for 128 x 128', (rows, columns) => [Math.ceil(rows / 128), Math.ceil(columns / 128)]],
    ['a scale for a row', (rows) => [rows, 1]],
  ])('has %s', async (_, shapeOf) => {
    const { directory, expected } = await checkpoint({ quant_method: 'fp8' }, coded(shapeOf));
    await expectValues(directory, expected);
  });

  test('has no blocks of a size that must be guessed', async () => {
    const { directory } = await checkpoint(
      { quant_method: 'fp8' },
      coded(() => [2, 2]),
    );
    expect(await refusal(directory)).toMatch(/shape is \[2,2\]; allowed: scales for blocks of 128 x 128/);
    const without = { quant_method: 'fp8', weight_block_size: null };
    const { directory: other } = await checkpoint(
      without,
      coded(() => [2, 2]),
    );
    expect(await refusal(other)).toMatch(/shape is \[2,2\]; allowed: scales for blocks of 20 x 44/);
  });
});
