/** A file of weights. What reads from it rejects with MODEL_INVALID unless it is still as it was when it was opened. */
export interface WeightFile {
  readonly path: string;
  readonly byteLength: number;
  /** Device, inode, size and times: equal texts mean the same content, unless it changed within one tick of its clock. */
  readonly identity: string;
  /** When its content, its name or its rights last changed, in milliseconds since 1970. */
  readonly changedMs: number;
  /** Throws MODEL_INVALID if the file was changed, replaced or removed. */
  requireUnchanged(): void;
  /** Closes it once no operation uses it. Idempotent. */
  close(): void;
}

/** Codes that are multiplied by a scale: floats of 8 and 4 bits, integers, integers that stand 128 (U8) and 8 (U4) above their value. */
export type CodeDtype = 'F8_E4M3' | 'F4_E2M1' | 'I8' | 'U8' | 'U4';
export type StoredDtype = 'BF16' | 'F16' | 'F32' | CodeDtype;
/** F8_E8M0: a power of two. */
export type ScaleDtype = 'BF16' | 'F16' | 'F32' | 'F8_E8M0';

/**
 * What is taken from codes before they are multiplied, laid out as the scales: bytes with a sign; packed: as many rows as fit, the first in
 * the lowest bits, to an int32, standing as far above their value as the codes.
 */
export interface ZeroPointSource {
  file: WeightFile;
  byteOffset: number;
  packed: boolean;
}

/**
 * What the codes of a matrix are multiplied by: element (i, j) by scale ((firstRow + i * rowStep) / blockRows,
 * (firstColumn + j) / blockColumns), of rows of so many columns.
 */
export interface ScaleSource {
  file: WeightFile;
  byteOffset: number;
  dtype: ScaleDtype;
  columns: number;
  blockRows: number;
  blockColumns: number;
  firstRow: number;
  rowStep: number;
  firstColumn: number;
  /** The other way round: scales are in rows of so many for the rows of the matrix. */
  transposed?: boolean;
  /** Only of integers. */
  zeros?: ZeroPointSource;
  /** int32: the column of scales of each column, where blocks do not tell. */
  groups?: { file: WeightFile; byteOffset: number };
}

/** Where a row-major [rows, columns] matrix (a vector: rows = 1) comes from. */
export type TensorSource =
  | {
      kind: 'file';
      file: WeightFile;
      /** Its name in the file, for messages; the addon does not look at it. */
      tensor: string;
      byteOffset: number;
      dtype: StoredDtype;
      rows: number;
      columns: number;
      /** Elements from one row, and column, to the next; without them rows are whole and side by side. */
      rowStride?: number;
      columnStride?: number;
      /** Only of codes, which need it. */
      scale?: ScaleSource;
    }
  | {
      kind: 'synthetic';
      seed: number;
      /** Names the tensor: other streams are independent. Integer below 2^53. */
      stream: number;
      rows: number;
      columns: number;
      /** Values are uniform in [center - scale, center + scale). */
      scale: number;
      center: number;
    };
