import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type CodeDtype, native, type ScaleDtype, type TensorSource } from '../native/index.js';
import { holdExperts, loadExperts, type Shape, weightBytes } from './experts.js';
import { startNative } from './peer.js';
import { randomOf } from './random.js';
import type { BenchOptions, BenchResult } from './report.js';
import { summarizeTurns, takeTurns } from './turns.js';

const shape: Shape = { activation: 'swiglu', hidden: 4096, ffn: 1536 };
const rowCounts = [1, 16, 512, 2048];
/** Beyond any cache. */
const workingSetBytes = 256e6;
const turnsPerRun = (rows: number) => (rows <= 16 ? 4 : 1);

/** How weights are stored, with random codes and scales that leave them about as large as those of the BF16 experts. */
interface Stored {
  dtype: CodeDtype;
  bits: number;
  scale: { dtype: ScaleDtype; blockRows: number; blockColumns: number; bytes: number };
  /** There is a zero point, a byte, for every scale. */
  hasZeros?: boolean;
  /** Of a scale. */
  write: (to: DataView, at: number) => void;
}

const forms: Record<string, Stored> = {
  fp8: {
    dtype: 'F8_E4M3',
    bits: 8,
    scale: { dtype: 'F32', blockRows: 128, blockColumns: 128, bytes: 4 },
    write: (to, at) => to.setFloat32(at, 1e-4, true),
  },
  mxfp4: {
    dtype: 'F4_E2M1',
    bits: 4,
    scale: { dtype: 'F8_E8M0', blockRows: 1, blockColumns: 32, bytes: 1 },
    write: (to, at) => to.setUint8(at, 127 - 7),
  },
  int4: {
    dtype: 'U4',
    bits: 4,
    scale: { dtype: 'BF16', blockRows: 1, blockColumns: 128, bytes: 2 },
    hasZeros: true,
    write: (to, at) => to.setUint16(at, 0x3b00, true),
  },
};

/** A file of codes, behind them scales and behind those zero points, if there are any; all matrices are made of it. */
async function writeWeights(
  path: string,
  { bits, scale, hasZeros, write }: Stored,
  codes: number,
  scales: number,
) {
  const codeBytes = (codes * bits) / 8;
  const zerosAt = codeBytes + scales * scale.bytes;
  const bytes = new Uint8Array(zerosAt + (hasZeros ? scales : 0));
  const random = randomOf(1);
  // Without the code of NaN.
  for (let at = 0; at < codeBytes; at += 1) bytes[at] = Math.floor(random() * 256) & 0xfb;
  const view = new DataView(bytes.buffer);
  for (let at = codeBytes; at < zerosAt; at += scale.bytes) write(view, at);
  for (let at = zerosAt; at < bytes.byteLength; at += 1) view.setInt8(at, Math.floor(random() * 16) - 8);
  await writeFile(path, bytes);
  return { byteOffset: codeBytes, zerosAt };
}

async function benchForm(name: string, stored: Stored, { runs, log }: BenchOptions): Promise<BenchResult[]> {
  native.configure({ slabBytesMax: 2 ** 30, threads: 1 });
  const directory = await mkdtemp(join(tmpdir(), 'switchyard-bench-'));
  try {
    const { hidden, ffn } = shape;
    const { scale, dtype, bits } = stored;
    const path = join(directory, 'weights');
    const scalesMax = Math.ceil(hidden / scale.blockRows) * Math.ceil(hidden / scale.blockColumns);
    const { byteOffset, zerosAt } = await writeWeights(path, stored, hidden * ffn, scalesMax);
    const file = native.openWeightFile(path);
    const matrix = (rows: number, columns: number): TensorSource => ({
      kind: 'file',
      file,
      tensor: name,
      byteOffset: 0,
      dtype,
      rows,
      columns,
      scale: {
        ...scale,
        file,
        byteOffset,
        columns: Math.ceil(columns / scale.blockColumns),
        firstRow: 0,
        rowStep: 1,
        firstColumn: 0,
        ...(stored.hasZeros && { zeros: { file, byteOffset: zerosAt, packed: false } }),
      },
    });
    const source = {
      activation: shape.activation,
      gate: matrix(ffn, hidden),
      up: matrix(ffn, hidden),
      down: matrix(hidden, ffn),
    };
    const packedBytes = (weightBytes(shape) * bits) / 16;
    const count = Math.ceil(workingSetBytes / packedBytes);
    const rowsMax = Math.max(...rowCounts);
    const packed = await holdExperts(shape, rowsMax, (backend) =>
      Promise.all(Array.from({ length: count }, () => backend.load(source))),
    );
    const usual = await holdExperts(shape, rowsMax, (backend) => loadExperts(backend, shape, count));
    const sizes = [hidden, ffn, count].map(String);
    const limits = await startNative('experts_peer', [packed.isa, shape.activation, ...sizes], log);
    const results: BenchResult[] = [];
    for (const rows of rowCounts) {
      const peers = { bf16: usual.forward };
      const turns = await takeTurns(runs * turnsPerRun(rows), count, rows, packed.forward, peers, limits);
      const work = rows === 1 ? packed.bytes : weightBytes(shape) * rows;
      const result = summarizeTurns(`${name}-${rows}`, work, rows === 1, turns);
      results.push({
        ...result,
        details: { ...result.details, 'memory / stored': packed.bytes / packedBytes },
      });
    }
    for (const held of [packed, usual]) held.close();
    file.close();
    return results;
  } finally {
    await rm(directory, { recursive: true });
  }
}

/** Experts whose weights stay packed: bytes of weights a second for one row beside plain reading, and beside the same experts in BF16. */
export const packedExpertGroups: Record<string, (options: BenchOptions) => Promise<BenchResult[]>> =
  Object.fromEntries(
    Object.entries(forms).map(([form, stored]) => {
      const name = `experts/${shape.hidden}x${shape.ffn}-${form}`;
      return [name, (options: BenchOptions) => benchForm(name, stored, options)];
    }),
  );
