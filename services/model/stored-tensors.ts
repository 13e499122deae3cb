import { join } from 'node:path';
import type { CodeDtype, ScaleDtype, StoredDtype, TensorSource } from '../../native/index.js';
import type { CheckpointFiles } from './checkpoint-files.js';
import type { IndexTable, MatrixView, TensorShapes } from './matrix-view.js';
import { type PackedNames, type Quantization, quantisedNames } from './quantization.js';
import { fileInvalid, type TensorEntry, tensorMissing } from './safetensors-header.js';

const plainDtypes: readonly string[] = ['BF16', 'F16', 'F32'];
const scaleDtypes: Readonly<Record<string, ScaleDtype>> = {
  F32: 'F32',
  BF16: 'BF16',
  F16: 'F16',
  U8: 'F8_E8M0',
  F8_E8M0: 'F8_E8M0',
};

/** Bits of a code. */
const bitsOf = { F8_E4M3: 8, I8: 8, U8: 8, U4: 4, F4_E2M1: 4 } as const;

/** Memory that a matrix takes: BF16, or codes with their scales. */
export function storedBytes({ rows, columns, dtype, scale }: TensorSource & { kind: 'file' }): number {
  if (scale === undefined) return rows * columns * 2;
  const scales = rows * Math.ceil(columns / scale.blockColumns);
  return (rows * columns * bitsOf[dtype as CodeDtype]) / 8 + scales * (scale.dtype === 'F32' ? 4 : 2);
}

/** The tensors of a checkpoint as matrices for the addon, whether they are stored as they are or packed. */
export class StoredTensors implements TensorShapes {
  constructor(
    private readonly files: CheckpointFiles,
    private readonly quantization: Quantization,
  ) {}

  has(tensor: string): boolean {
    return this.files.has(tensor) || this.packed(tensor) !== null;
  }

  isPlain(tensor: string): boolean {
    return this.files.has(tensor);
  }

  shapeOf(tensor: string): readonly number[] | null {
    return this.files.shapeOf(tensor);
  }

  /** Opens the files that hold these views and tables, and checks that all is there with its shape and dtype. Rejects with MODEL_INVALID. */
  async open(views: () => Iterable<MatrixView>, tables: readonly IndexTable[]): Promise<void> {
    const names = new Set(Array.from(views(), ({ tensor }) => tensor));
    await this.files.openFor([...names].flatMap((tensor) => this.tensorsOf(tensor)));
    await this.files.openFor(tables.map(({ tensor }) => tensor));
    // Of tensors whose files are open more is known.
    for (const view of views()) this.source(view);
    for (const table of tables) this.indices(table);
  }

  /** What reads a table. Throws MODEL_INVALID if the tensor has another shape or dtype; reading rejects so for elements out of range. */
  indices({ tensor, shape, limit }: IndexTable): () => Promise<Uint32Array> {
    const file = this.files.file(tensor);
    const entry = file.check(tensor, shape, ['I64']);
    return () => file.readIndices(entry, limit);
  }

  /** Throws MODEL_INVALID if a tensor has another shape or dtype than it must. */
  source(view: MatrixView): TensorSource {
    const packed = this.packed(view.tensor);
    if (packed !== null) {
      const entry = this.files.file(packed.codes).entry(packed.codes);
      // Tensors that were left as they are have no scales.
      if (!plainDtypes.includes(entry.dtype)) return this.packedSource(view, packed);
    }
    const file = this.files.file(view.tensor);
    const { dtype, byteOffset } = file.check(view.tensor, view.shape, plainDtypes);
    return {
      ...placed(view, dtype as StoredDtype, byteOffset, dtype === 'F32' ? 4 : 2),
      ...file.handle,
    };
  }

  private packed(tensor: string): PackedNames | null {
    return this.quantization(tensor).find(({ codes }) => this.files.has(codes)) ?? null;
  }

  /** Those of the file that a tensor is made of. */
  private tensorsOf(tensor: string): string[] {
    const packed = this.packed(tensor);
    if (packed === null) {
      this.refuseScales(tensor);
      return [tensor];
    }
    const scale = packed.scales.find((name) => this.files.has(name));
    return scale === undefined ? [packed.codes] : [packed.codes, scale];
  }

  /** Values that await a scale would be served as if they were the weights. */
  private refuseScales(tensor: string): void {
    const beside = quantisedNames(tensor).find((each) => this.files.has(each));
    if (beside === undefined) return;
    const file = join(this.files.directory, this.files.fileName(beside));
    const allowed =
      'no scales or packed values beside the weights, unless quantization_config of config.json tells what they are';
    throw fileInvalid(
      file,
      beside,
      'presence',
      `a sign that ${JSON.stringify(tensor)} is quantised`,
      allowed,
    );
  }

  private packedSource(view: MatrixView, packed: PackedNames): TensorSource {
    const { codes, dtype, stored, shape } = packed;
    const file = this.files.file(codes);
    const entry = file.check(codes, shape(view.shape), [stored]);
    if (view.transposed)
      throw fileInvalid(file.path, codes, 'layout', 'transposed', 'quantised weights as [outputs, inputs]');
    const scaleName = packed.scales.find((name) => this.files.has(name));
    if (scaleName === undefined) throw tensorMissing(file.path, packed.scales[0]!, file.header.tensors);
    return {
      ...placed(view, dtype, entry.byteOffset, bitsOf[dtype] / 8),
      ...file.handle,
      tensor: codes,
      scale: this.scaleOf(view, packed, scaleName),
    };
  }

  private scaleOf(view: MatrixView, { block }: PackedNames, name: string) {
    const file = this.files.file(name);
    const entry = file.entry(name);
    const dtype = scaleDtypes[entry.dtype];
    if (dtype === undefined) {
      throw fileInvalid(file.path, name, 'dtype', entry.dtype, Object.keys(scaleDtypes).join(', '));
    }
    const { tensorRows, tensorColumns } = view;
    const matrices = view.shape.reduce((product, size) => product * size, 1) / (tensorRows * tensorColumns);
    const [rows, columns] = scaleGrid(entry, matrices);
    const [blockRows, blockColumns] = block ?? [
      Math.ceil(tensorRows / rows),
      Math.ceil(tensorColumns / columns),
    ];
    if (Math.ceil(tensorRows / blockRows) !== rows || Math.ceil(tensorColumns / blockColumns) !== columns) {
      const needed = `scales for blocks of ${blockRows} x ${blockColumns} of ${tensorRows} x ${tensorColumns} weights`;
      throw fileInvalid(file.path, name, 'shape', JSON.stringify(entry.shape), needed);
    }
    file.check(name, entry.shape, Object.keys(scaleDtypes));
    const bytes = dtype === 'F32' ? 4 : dtype === 'F8_E8M0' ? 1 : 2;
    const { file: weights } = file.handle;
    return {
      file: weights,
      byteOffset: entry.byteOffset + view.index * rows * columns * bytes,
      dtype,
      columns,
      blockRows,
      blockColumns,
      firstRow: view.firstRow,
      rowStep: view.rowStep,
      firstColumn: view.firstColumn,
    };
  }
}

/** Rows and columns of scales of each of so many matrices. */
function scaleGrid({ shape }: TensorEntry, matrices: number): [number, number] {
  const total = shape.reduce((product, size) => product * size, 1) / matrices;
  const columns = shape.length > 1 && shape.at(-1)! <= total ? shape.at(-1)! : 1;
  return [total / columns, columns];
}

/** Where a view lies in a tensor whose elements have so many bytes. */
function placed(view: MatrixView, dtype: StoredDtype, tensorOffset: number, elementBytes: number) {
  const { index, tensorRows, tensorColumns, rows, columns, firstRow, rowStep, firstColumn } = view;
  const [rowStride, columnStride] = view.transposed ? [rowStep, tensorColumns] : [rowStep * tensorColumns, 1];
  const first = view.transposed
    ? firstColumn * tensorColumns + firstRow
    : firstRow * tensorColumns + firstColumn;
  const byteOffset = tensorOffset + (index * tensorRows * tensorColumns + first) * elementBytes;
  return {
    kind: 'file',
    tensor: view.tensor,
    byteOffset,
    dtype,
    rows,
    columns,
    rowStride,
    columnStride,
  } as const;
}
