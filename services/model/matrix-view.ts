import type { FusedNames, MatrixNames } from './families/family.js';

/** A matrix as part of a stored tensor. */
export interface MatrixView {
  tensor: string;
  /** Shape that the whole tensor must have. */
  shape: readonly number[];
  /** The tensor is so many matrices of tensorRows x tensorColumns, and this is a part of this one. */
  index: number;
  tensorRows: number;
  tensorColumns: number;
  rows: number;
  columns: number;
  /** The row of the stored matrix, or where transposed its column, of the view's row i is firstRow + i * rowStep. */
  firstRow: number;
  rowStep: number;
  /** The same of columns, one after the other. */
  firstColumn: number;
  transposed: boolean;
}

/** A tensor of this shape; `index`: one of the matrices that it holds along its first dimension. */
function stored(tensor: string, shape: readonly number[], index: number | null): MatrixView {
  const [tensorRows, tensorColumns = 1] = (index === null ? shape : shape.slice(1)) as [number, number?];
  const size = { tensorRows, tensorColumns, rows: tensorRows, columns: tensorColumns };
  return {
    tensor,
    shape,
    index: index ?? 0,
    ...size,
    firstRow: 0,
    rowStep: 1,
    firstColumn: 0,
    transposed: false,
  };
}

export function matrix(tensor: string, rows: number, columns: number): MatrixView {
  return stored(tensor, [rows, columns], null);
}

/** A tensor of one dimension, as one row. */
export function vector(tensor: string, length: number): MatrixView {
  return { ...stored(tensor, [length], null), rows: 1, columns: length, transposed: true };
}

/** A tensor of one dimension, as one column. */
export function column(tensor: string, length: number): MatrixView {
  return stored(tensor, [length], null);
}

export function transposed(view: MatrixView): MatrixView {
  return { ...view, rows: view.columns, columns: view.rows, transposed: !view.transposed };
}

/** A whole tensor of I64, whose elements are 0 to below `limit`. */
export interface IndexTable {
  tensor: string;
  shape: readonly number[];
  limit: number;
}

/** Null stands for zeros. */
export interface BiasViews {
  gate: MatrixView | null;
  up: MatrixView | null;
  down: MatrixView | null;
}

/** Where an FFN's matrices are, and its biases as columns. */
export interface FfnViews {
  gate: MatrixView | null;
  up: MatrixView;
  down: MatrixView;
  bias: BiasViews | null;
}

/** Linear maps around the FFNs of a layer; biases are columns, null where there is none. */
export interface LatentViews {
  input: MatrixView;
  inputBias: MatrixView | null;
  output: MatrixView;
  outputBias: MatrixView | null;
}

/** Which neurons of an FFN are wanted. */
export interface FfnPart {
  /** Of the whole. */
  ffn: number;
  first: number;
  count: number;
}

/** What is known of the tensors of a checkpoint. */
export interface TensorShapes {
  /** Whether there is this tensor, or others that it is packed in. */
  has(tensor: string): boolean;
  /** Whether it is there under its own name. */
  isPlain(tensor: string): boolean;
  /** Null: there is none, or its file is not open yet. */
  shapeOf(tensor: string): readonly number[] | null;
}

export function biasOf(weight: string): string {
  return weight.replace(/weight$/, 'bias');
}

/** Finds the matrices of FFNs by their names. */
export class FfnFinder {
  constructor(
    private readonly names: MatrixNames | FusedNames,
    /** In front of every name. */
    private readonly prefix: string,
    private readonly hidden: number,
    /** How many FFNs go by these names; null: one alone. */
    private readonly count: number | null,
    private readonly shapes: TensorShapes,
    /** How many more have rows in a fused tensor of gates and ups, which nobody reads, and none in that of downs. */
    private readonly unread = 0,
  ) {}

  /** Whether a single FFN of three matrices has biases beside them: families have a key for that, of one name or another. */
  get biased(): boolean {
    const { names } = this;
    return (
      this.count === null && names.kind === 'separate' && this.shapes.has(this.prefix + biasOf(names.down))
    );
  }

  /** `index`: which of the FFNs. */
  find(part: FfnPart, index = 0): FfnViews {
    const { names } = this;
    if (names.kind === 'fused') return this.fused(names, part, index);
    return names.kind === 'separate' ? this.separate(names, part, index) : this.joined(names, part, index);
  }

  private separate({ gate, up, down }: MatrixNames, { ffn, first, count }: FfnPart, index: number): FfnViews {
    const neurons = (name: string) => ({
      ...this.view(name, [ffn, this.hidden], index),
      rows: count,
      firstRow: first,
    });
    return {
      gate: gate === null ? null : neurons(gate),
      up: neurons(up),
      down: { ...this.view(down, [this.hidden, ffn], index), columns: count, firstColumn: first },
      bias: this.biased ? this.biases({ gate, up, down }, { ffn, first, count }) : null,
    };
  }

  private biases(names: Omit<MatrixNames, 'kind'>, { ffn, first, count }: FfnPart): BiasViews {
    const neurons = (name: string) => ({
      ...column(this.prefix + biasOf(name), ffn),
      rows: count,
      firstRow: first,
    });
    return {
      gate: names.gate === null ? null : neurons(names.gate),
      up: neurons(names.up),
      // The parts of one FFN are added up.
      down: first === 0 ? column(this.prefix + biasOf(names.down), this.hidden) : null,
    };
  }

  private joined({ gate, up, down }: MatrixNames, { ffn, first, count }: FfnPart, index: number): FfnViews {
    const neurons = (name: string): MatrixView => ({
      ...matrix(this.prefix + name, this.count! * ffn, this.hidden),
      index,
      tensorRows: ffn,
      rows: count,
      firstRow: first,
    });
    return {
      gate: gate === null ? null : neurons(gate),
      up: neurons(up),
      down: transposed(neurons(down)),
      bias: null,
    };
  }

  private fused(names: FusedNames, { ffn, first, count }: FfnPart, index: number): FfnViews {
    const { hidden } = this;
    const turned = this.isTransposed(names, ffn);
    const shape = (rows: number, columns: number) => (turned ? [columns, rows] : [rows, columns]);
    const upright = (name: string, rows: number, columns: number, unread = 0) => {
      const view = this.view(name, shape(rows, columns), index, unread);
      return turned ? transposed(view) : view;
    };
    /** The first row of a half, and the step from one to the next. */
    const half = (which: number) =>
      names.interleaved
        ? { rows: count, firstRow: 2 * first + which, rowStep: 2 }
        : { rows: count, firstRow: which * ffn + first, rowStep: 1 };
    const gateUp = upright(names.gateUp, 2 * ffn, hidden, this.unread);
    const down = upright(names.down, hidden, ffn);
    const views = {
      gate: { ...gateUp, ...half(0) },
      up: { ...gateUp, ...half(1) },
      down: { ...down, columns: count, firstColumn: first },
    };
    const { gateUpBias, downBias } = names;
    if (gateUpBias === undefined || downBias === undefined) return { ...views, bias: null };
    const bias = this.view(gateUpBias, [2 * ffn], index);
    return {
      ...views,
      bias: {
        gate: { ...bias, ...half(0) },
        up: { ...bias, ...half(1) },
        down: this.view(downBias, [hidden], index),
      },
    };
  }

  private isTransposed({ transposed, gateUp, down }: FusedNames, ffn: number): boolean {
    if (typeof transposed === 'boolean') return transposed;
    if (transposed === 'unless-packed') return this.shapes.isPlain(this.prefix + gateUp);
    // One of the two is no square.
    const [name, rows] = ffn === this.hidden ? [gateUp, this.hidden] : [down, ffn];
    return this.shapes.shapeOf(this.prefix + name)?.at(-2) === rows;
  }

  private view(name: string, shape: readonly number[], index: number, unread = 0): MatrixView {
    const tensor = this.prefix + name.replace('#', String(index));
    const stacked = this.count !== null && !name.includes('#');
    return stacked ? stored(tensor, [this.count + unread, ...shape], index) : stored(tensor, shape, null);
  }
}
