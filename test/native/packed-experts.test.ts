import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { randomOf } from '../../bench/random.js';
import { native, type TensorSource } from '../../native/index.js';
import { decodeBf16 } from '../../services/model/bf16.js';
import { relativeErrors } from '../../services/model/reference.js';

const [hidden, ffn, group, rowCount] = [512, 256, 32, 20];
const backend = native.createCpuBackend({ threads: 1 });
const directory = await mkdtemp(join(tmpdir(), 'switchyard-packed-'));
afterAll(async () => {
  backend.close();
  await rm(directory, { recursive: true });
});
let files = 0;
const random = randomOf(5);

function shuffled(columns: number): Uint32Array {
  const order = Uint32Array.from({ length: columns }, (_, column) => column);
  for (let at = columns - 1; at > 0; at -= 1) {
    const other = Math.floor(random() * (at + 1));
    [order[at], order[other]] = [order[other]!, order[at]!];
  }
  return order;
}

interface Form {
  bits: 4 | 8;
  zeros: boolean;
  ordered: boolean;
}

/** A matrix of codes in a file, and the same as float32 in another. */
async function matrix(rows: number, columns: number, { bits, zeros, ordered }: Form, groupOf: Uint32Array) {
  const [half, groups] = [2 ** (bits - 1), columns / group];
  const codes = Uint8Array.from({ length: rows * columns }, () => Math.floor(random() * 2 ** bits));
  const scales = Float32Array.from(
    { length: rows * groups },
    () => (1 + random()) / half / Math.sqrt(columns),
  );
  const shifts = Int8Array.from({ length: rows * groups }, () => Math.floor(random() * 2 ** bits) - half);
  const values = Float32Array.from(codes, (code, at) => {
    const [row, column] = [Math.floor(at / columns), at % columns];
    const scale = row * groups + (ordered ? groupOf[column]! : Math.floor(column / group));
    return (code - half - (zeros ? shifts[scale]! : 0)) * scales[scale]!;
  });
  const stored =
    bits === 8
      ? codes
      : Uint8Array.from({ length: codes.length / 2 }, (_, at) => codes[2 * at]! | (codes[2 * at + 1]! << 4));
  const parts = [stored, scales, shifts, groupOf].map((part) =>
    Buffer.from(part.buffer, part.byteOffset, part.byteLength),
  );
  const places = parts.map((_, at) => parts.slice(0, at).reduce((sum, { length }) => sum + length, 0));
  files += 1;
  const [packedPath, plainPath] = [join(directory, `packed-${files}`), join(directory, `plain-${files}`)];
  await writeFile(packedPath, Buffer.concat(parts));
  await writeFile(plainPath, values);
  const file = native.openWeightFile(packedPath);
  const packed: TensorSource = {
    kind: 'file',
    file,
    tensor: 'packed',
    byteOffset: 0,
    dtype: bits === 8 ? 'U8' : 'U4',
    rows,
    columns,
    scale: {
      file,
      byteOffset: places[1]!,
      dtype: 'F32',
      columns: groups,
      blockRows: 1,
      blockColumns: group,
      firstRow: 0,
      rowStep: 1,
      firstColumn: 0,
      ...(zeros && { zeros: { file, byteOffset: places[2]!, packed: false } }),
      ...(ordered && { groups: { file, byteOffset: places[3]! } }),
    },
  };
  const plain: TensorSource = {
    kind: 'file',
    file: native.openWeightFile(plainPath),
    tensor: 'plain',
    byteOffset: 0,
    dtype: 'F32',
    rows,
    columns,
  };
  return { packed, plain, bytes: stored.length + scales.byteLength + (zeros ? shifts.length : 0) };
}

const groupsOf = (columns: number) => shuffled(columns).map((place) => Math.floor(place / group));

async function outputs(matrices: { gate: TensorSource; up: TensorSource; down: TensorSource }) {
  const expert = await backend.load({ activation: 'swiglu', ...matrices });
  const rows = await native.synthesizeTokens({
    seed: 3,
    firstToken: 0,
    count: rowCount,
    hidden,
    skew: 0,
    topics: 8,
  });
  const output = native.allocateSlab(rowCount * hidden * 2);
  const indices = Uint32Array.from({ length: rowCount }, (_, row) => row);
  await backend.forward([{ expert, inputs: [{ rows, indices, output, outputRow: 0, inputWeights: null }] }]);
  const values = decodeBf16(output.view().slice());
  const { bytes } = expert;
  for (const held of [expert, rows, output]) held.release();
  return { values, bytes };
}

test.each<[string, Form, boolean]>([
  ['integers of 4 bits with zero points', { bits: 4, zeros: true, ordered: false }, true],
  ['integers of 8 bits with zero points', { bits: 8, zeros: true, ordered: false }, true],
  ['integers of 4 bits in an order of columns', { bits: 4, zeros: false, ordered: true }, true],
  [
    'integers of 8 bits in an order of columns, with zero points',
    { bits: 8, zeros: true, ordered: true },
    true,
  ],
  ['gate and up in different orders', { bits: 4, zeros: true, ordered: true }, false],
])('%s', async (_, form, staysPacked) => {
  const inputs = groupsOf(hidden);
  const gate = await matrix(ffn, hidden, form, inputs);
  const up = await matrix(ffn, hidden, form, staysPacked ? inputs : groupsOf(hidden));
  const down = await matrix(hidden, ffn, form, groupsOf(ffn));
  const packed = await outputs({ gate: gate.packed, up: up.packed, down: down.packed });
  const plain = await outputs({ gate: gate.plain, up: up.plain, down: down.plain });
  expect(relativeErrors(packed.values, plain.values, hidden).relativeError).toBeLessThan(8e-3);
  const stored = gate.bytes + up.bytes + down.bytes;
  if (staysPacked) expect(packed.bytes).toBeLessThan(1.1 * stored);
  else expect(packed.bytes).toBeGreaterThan(2 * (stored - down.bytes));
});
