import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { randomOf } from '../../bench/random.js';
import {
  type CodeDtype,
  type Expert,
  type ExpertBackend,
  type ExpertSource,
  native,
  type ScaleDtype,
  type TensorSource,
} from '../../native/index.js';
import { temporaryDirectory } from '../model/support.js';

const hidden = 1024;
const ffn = 1056;

interface Form {
  dtype: CodeDtype;
  bits: number;
  scale: { dtype: ScaleDtype; blockRows: number; blockColumns: number };
  /** Bytes of a scale. */
  scaleBytes: number;
  write: (to: DataView, at: number, random: number) => void;
}

const forms: Record<string, Form> = {
  'FP8 in blocks': {
    dtype: 'F8_E4M3',
    bits: 8,
    scale: { dtype: 'F32', blockRows: 128, blockColumns: 128 },
    scaleBytes: 4,
    write: (to, at, random) => to.setFloat32(at, (1 + random) * 1e-3, true),
  },
  MXFP4: {
    dtype: 'F4_E2M1',
    bits: 4,
    scale: { dtype: 'F8_E8M0', blockRows: 1, blockColumns: 32 },
    scaleBytes: 1,
    write: (to, at, random) => to.setUint8(at, 118 + Math.floor(random * 6)),
  },
  'INT4 in groups': {
    dtype: 'U4',
    bits: 4,
    scale: { dtype: 'BF16', blockRows: 1, blockColumns: 32 },
    scaleBytes: 2,
    write: (to, at, random) => to.setUint16(at, 0x3c00 + Math.floor(random * 127), true),
  },
  'INT8 by channel': {
    dtype: 'I8',
    bits: 8,
    scale: { dtype: 'F32', blockRows: 1, blockColumns: hidden },
    scaleBytes: 4,
    write: (to, at, random) => to.setFloat32(at, (1 + random) * 1e-3, true),
  },
};

/** A matrix of random codes in a file of its own, and the bytes that it has there. */
async function packedMatrix(form: Form, seed: number, rows: number, columns: number) {
  const { dtype, bits, scale, scaleBytes, write } = form;
  const scaleColumns = Math.ceil(columns / scale.blockColumns);
  const codeBytes = (rows * columns * bits) / 8;
  const bytes = new Uint8Array(codeBytes + Math.ceil(rows / scale.blockRows) * scaleColumns * scaleBytes);
  const random = randomOf(seed);
  // Without the codes of NaN.
  for (let at = 0; at < codeBytes; at += 1) bytes[at] = Math.floor(random() * 256) & 0xfb;
  const view = new DataView(bytes.buffer);
  for (let at = codeBytes; at < bytes.byteLength; at += scaleBytes) write(view, at, random());
  const path = join(await temporaryDirectory(), 'codes');
  await writeFile(path, bytes);
  const file = native.openWeightFile(path);
  const scales = { ...scale, file, byteOffset: codeBytes, columns: scaleColumns };
  const source: TensorSource = {
    kind: 'file',
    file,
    tensor: 'codes',
    byteOffset: 0,
    dtype,
    rows,
    columns,
    scale: { ...scales, firstRow: 0, rowStep: 1, firstColumn: 0 },
  };
  return { source, bytes: bytes.byteLength };
}

/** The same weights in BF16. */
async function widened(source: TensorSource): Promise<TensorSource> {
  const slab = await native.readTensor(source);
  const path = join(await temporaryDirectory(), 'bf16');
  await writeFile(path, slab.view().slice());
  slab.release();
  const { rows, columns } = source;
  const file = native.openWeightFile(path);
  return { kind: 'file', file, tensor: 'bf16', byteOffset: 0, dtype: 'BF16', rows, columns };
}

/** What an expert makes of the first rows of a batch, in BF16. */
async function compute(backend: ExpertBackend, expert: Expert, count: number): Promise<Uint16Array> {
  const rows = await native.synthesizeTokens({ seed: 2, firstToken: 0, count, hidden, skew: 0, topics: 8 });
  const output = native.allocateSlab(count * hidden * 2);
  const indices = Uint32Array.from({ length: count }, (_, row) => row);
  await backend.forward([{ expert, inputs: [{ rows, indices, output, outputRow: 0, inputWeights: null }] }]);
  const bits = new Uint16Array(output.view().slice().buffer);
  for (const held of [rows, output]) held.release();
  return bits;
}

const floats = (bits: Uint16Array) => new Float32Array(Uint32Array.from(bits, (bf16) => bf16 << 16).buffer);

/** The 2-norm of the difference beside that of `expected`. */
function relativeError(got: Uint16Array, expected: Uint16Array): number {
  const [a, b] = [floats(got), floats(expected)];
  const squares = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0);
  return Math.sqrt(squares(a.map((value, at) => value - b[at]!)) / squares(b));
}

describe.each(Object.entries(forms))('an expert in %s', (_, form) => {
  test('stays packed, and computes what its weights in BF16 do, with the same bits whatever the number of rows', async () => {
    const gate = await packedMatrix(form, 1, ffn, hidden);
    const up = await packedMatrix(form, 2, ffn, hidden);
    const down = await packedMatrix(form, 3, hidden, ffn);
    const stored = gate.bytes + up.bytes + down.bytes;
    const packed: ExpertSource = {
      activation: 'swiglu',
      gate: gate.source,
      up: up.source,
      down: down.source,
    };
    const usual: ExpertSource = {
      activation: 'swiglu',
      gate: await widened(gate.source),
      up: await widened(up.source),
      down: await widened(down.source),
    };
    const backend = native.createCpuBackend({ threads: 2 });
    const narrow = await backend.load(packed);
    const wide = await backend.load(usual);
    expect(narrow.bytes).toBeLessThanOrEqual(stored * 1.1);
    const many = await compute(backend, narrow, 40);
    expect(relativeError(many, await compute(backend, wide, 40))).toBeLessThan(8e-3);
    for (const count of [1, 3]) {
      expect(await compute(backend, narrow, count)).toEqual(many.subarray(0, count * hidden));
    }
    for (const held of [narrow, wide]) held.release();
    backend.close();
  });
});
