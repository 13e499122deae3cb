import { join } from 'node:path';
import type { CodeDtype, ScaleDtype, ScaleSource, StoredDtype, TensorSource } from '../../native/index.js';
import type { CheckpointFiles } from './checkpoint-files.js';
import type { IndexTable, MatrixView, TensorShapes } from './matrix-view.js';
import { type PackedNames, type Quantization, quantisedNames, type ScaleBlock } from './quantization.js';
import { fileInvalid, type TensorEntry, tensorMissing } from './safetensors-header.js';

const plainDtypes: readonly string[] = ['BF16', 'F16', 'F32'];
const scaleDtypes: ReadonlyMap<string, ScaleDtype> = new Map([
  ['F32', 'F32'],
  ['BF16', 'BF16'],
  ['F16', 'F16'],
  ['U8', 'F8_E8M0'],
  ['F8_E8M0', 'F8_E8M0'],
]);

/** Bits of a code. */
const bitsOf = { F8_E4M3: 8, I8: 8, U8: 8, U4: 4, F4_E2M1: 4 } as const;

/** Memory that a matrix takes: BF16, or codes with their scales and zero points. */
export function storedBytes({ rows, columns, dtype, scale }: TensorSource & { kind: 'file' }): number {
  if (scale === undefined) return rows * columns * 2;
  const scales = rows * Math.ceil(columns / scale.blockColumns);
  return (
    (rows * columns * bitsOf[dtype as CodeDtype]) / 8 +
    scales * ((scale.dtype === 'F32' ? 4 : 2) + (scale.zeros ? 1 : 0))
  );
}

/** The tensors of a checkpoint as matrices for the addon, whether they are stored as they are or packed. */
export class StoredTensors implements TensorShapes {
  constructor(
    private readonly files: CheckpointFiles,
    private readonly quantization: Quantization,
  ) {}

  has(tensor: string): boolean {
    return this.files.has(tensor) || this.packed(tensor).length > 0;
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
    let failure: unknown = null;
    for (const packed of this.packed(view.tensor)) {
      const entry = this.files.file(packed.codes).entry(packed.codes);
      // Tensors that were left as they are have no scales.
      if (plainDtypes.includes(entry.dtype)) continue;
      try {
        return this.packedSource(view, packed);
      } catch (error) {
        // It may be quantised in another way of those that there are.
        failure ??= error;
      }
    }
    if (failure !== null) throw failure;
    const file = this.files.file(view.tensor);
    const { dtype, byteOffset } = file.check(view.tensor, view.shape, plainDtypes);
    return {
      ...placed(view, view.tensorColumns, dtype as StoredDtype, byteOffset, dtype === 'F32' ? 4 : 2),
      ...file.handle,
    };
  }

  /** Ways in which a tensor may be quantised whose codes are there. */
  private packed(tensor: string): readonly PackedNames[] {
    return this.quantization(tensor).filter(({ codes }) => this.files.has(codes));
  }

  /** Those of the file that a tensor is made of. */
  private tensorsOf(tensor: string): string[] {
    const packed = this.packed(tensor);
    if (packed.length === 0) {
      this.refuseScales(tensor);
      return [tensor];
    }
    const names = packed.flatMap(({ codes, scales, zeros, groups }) => [codes, ...scales, zeros, groups]);
    return [...new Set(names)].filter((name) => name !== null).filter((name) => this.files.has(name));
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
    const { codes, dtype, stored, shape, rowCodes } = packed;
    const file = this.files.file(codes);
    const entry = file.check(codes, shape(view.shape), [stored]);
    const bits = bitsOf[dtype];
    if (view.transposed && bits < 8) {
      const allowed = 'codes of less than a byte as [outputs, inputs]';
      throw fileInvalid(file.path, codes, 'layout', 'transposed', allowed);
    }
    const place = placed(view, rowCodes(view.tensorColumns), dtype, entry.byteOffset, bits / 8);
    if (!Number.isInteger(place.byteOffset)) {
      const allowed = 'an even one, as two codes share a byte';
      throw fileInvalid(file.path, codes, 'first column of a part', `${view.firstColumn}`, allowed);
    }
    return { ...place, ...file.handle, tensor: codes, scale: this.scaleOf(view, packed) };
  }

  private scaleOf(view: MatrixView, packed: PackedNames): ScaleSource {
    const name = packed.scales.find((each) => this.files.has(each));
    if (name === undefined) {
      const { path, header } = this.files.file(packed.codes);
      throw tensorMissing(path, packed.scales[0]!, header.tensors);
    }
    const file = this.files.file(name);
    const entry = file.check(name, file.entry(name).shape, [...scaleDtypes.keys()]);
    const dtype = scaleDtypes.get(entry.dtype)!;
    const grids = packed.blocks.map((block) => gridOf(view, block));
    const grid = grids.find((each) => isGridOf(view, each, entry));
    if (grid === undefined) {
      const { blockRows, blockColumns } = grids[0]!;
      const needed = `scales for blocks of ${blockRows} x ${blockColumns} of ${view.tensorRows} x ${view.tensorColumns} weights`;
      throw fileInvalid(file.path, name, 'shape', JSON.stringify(entry.shape), needed);
    }
    const { blockRows, blockColumns, rows, columns } = grid;
    const bytes = dtype === 'F32' ? 4 : dtype === 'F8_E8M0' ? 1 : 2;
    return {
      ...file.handle,
      byteOffset: entry.byteOffset + view.index * rows * columns * bytes,
      dtype,
      columns,
      ...(view.transposed
        ? { blockRows: blockColumns, blockColumns: blockRows, transposed: true }
        : { blockRows, blockColumns }),
      firstRow: view.firstRow,
      rowStep: view.rowStep,
      firstColumn: view.firstColumn,
      ...this.zerosOf(view, packed, grid),
      ...this.groupsOf(view, packed),
    };
  }

  /** What is taken from the codes, if there is something. */
  private zerosOf(view: MatrixView, { zeros, needed, dtype }: PackedNames, { rows, columns }: ScaleGrid) {
    const file = this.beside(zeros, needed);
    if (file === null) return {};
    const entry = file.entry(zeros!);
    const packed = entry.dtype === 'I32';
    const wordRows = packed ? Math.ceil((rows * bitsOf[dtype]) / 32) : rows;
    const needs = { rows: wordRows, columns };
    if (!isGridOf(view, needs, entry)) {
      const shape = JSON.stringify(entry.shape);
      throw fileInvalid(file.path, zeros, 'shape', shape, `${wordRows} x ${columns} by the scales`);
    }
    file.check(zeros!, entry.shape, ['I32', 'I8']);
    const byteOffset = entry.byteOffset + view.index * wordRows * columns * (packed ? 4 : 1);
    return { zeros: { ...file.handle, byteOffset, packed } };
  }

  /** The group of each column, where they are told. */
  private groupsOf(view: MatrixView, { groups, needed }: PackedNames) {
    const file = this.beside(groups, needed);
    if (file === null) return {};
    const matrices = view.shape.length > 2 ? view.shape.slice(0, -2) : [];
    const { byteOffset } = file.check(groups!, [...matrices, view.tensorColumns], ['I32']);
    return { groups: { ...file.handle, byteOffset: byteOffset + view.index * view.tensorColumns * 4 } };
  }

  /** The file of a tensor beside codes; null: there is none. Throws MODEL_INVALID if it is needed. */
  private beside(name: string | null, needed: readonly string[]) {
    if (name === null || (!this.files.has(name) && !needed.includes(name))) return null;
    this.files.fileName(name);
    return this.files.file(name);
  }
}

/** Rows and columns of scales of one matrix as the file has it, and what each stands for. */
interface ScaleGrid {
  blockRows: number;
  blockColumns: number;
  rows: number;
  columns: number;
}

function gridOf({ tensorRows, tensorColumns, transposed }: MatrixView, block: ScaleBlock): ScaleGrid {
  const [rows, columns] = transposed ? [block[1], block[0]] : block;
  const [blockRows, blockColumns] = [rows ?? tensorRows, columns ?? tensorColumns];
  return {
    blockRows,
    blockColumns,
    rows: Math.ceil(tensorRows / blockRows),
    columns: Math.ceil(tensorColumns / blockColumns),
  };
}

/** Whether a tensor has so many rows and columns for each matrix; a dimension of 1 may be left out. */
function isGridOf(
  { shape, tensorRows, tensorColumns }: MatrixView,
  { rows, columns }: Pick<ScaleGrid, 'rows' | 'columns'>,
  entry: TensorEntry,
): boolean {
  const matrices = product(shape) / (tensorRows * tensorColumns);
  const without1 = (sizes: readonly number[]) => sizes.filter((size) => size !== 1).join(' x ');
  return without1(entry.shape) === without1([matrices, rows, columns]);
}

const product = (shape: readonly number[]) => shape.reduce((all, size) => all * size, 1);

/** Where a view lies in a tensor whose elements have so many bytes, and its rows so many elements. */
function placed(
  view: MatrixView,
  rowElements: number,
  dtype: StoredDtype,
  tensorOffset: number,
  elementBytes: number,
) {
  const { index, tensorRows, rows, columns, firstRow, rowStep, firstColumn } = view;
  const [rowStride, columnStride] = view.transposed ? [rowStep, rowElements] : [rowStep * rowElements, 1];
  const first = view.transposed ? firstColumn * rowElements + firstRow : firstRow * rowElements + firstColumn;
  const byteOffset = tensorOffset + (index * tensorRows * rowElements + first) * elementBytes;
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
