/** Where the cells of a heat map are, in CSS pixels. */
export interface Grid {
  columns: number;
  rows: number;
  left: number;
  top: number;
  cellWidth: number;
  cellHeight: number;
}

export interface Cell {
  column: number;
  row: number;
}

const labelHeight = 16;
const cellHeights = { min: 5, max: 22 };
const cellWidths = { min: 2.5, max: 34 };

/** A grid for so many cells within `width`; where that is too narrow for the least cells it is wider. */
export function gridFor(columns: number, rows: number, width: number, height: number, labels: number): Grid {
  const within = (value: number, { min, max }: { min: number; max: number }) =>
    Math.min(max, Math.max(min, value));
  return {
    columns,
    rows,
    left: labels,
    top: labelHeight,
    cellWidth: within((width - labels) / Math.max(1, columns), cellWidths),
    cellHeight: Math.floor(within(height / Math.max(1, rows), cellHeights)),
  };
}

export const gridSize = ({ columns, rows, left, top, cellWidth, cellHeight }: Grid) => ({
  width: Math.ceil(left + columns * cellWidth),
  height: top + rows * cellHeight + 1,
});

/** The cell at a place; null: none is there. */
export function cellAt(grid: Grid, x: number, y: number): Cell | null {
  const column = Math.floor((x - grid.left) / grid.cellWidth);
  const row = Math.floor((y - grid.top) / grid.cellHeight);
  return column >= 0 && row >= 0 && column < grid.columns && row < grid.rows ? { column, row } : null;
}

/** Whole pixels, and a gap between cells that have room for one. */
export function cellBox({ left, top, cellWidth, cellHeight }: Grid, column: number, row: number) {
  const x = Math.round(left + column * cellWidth);
  const end = Math.round(left + (column + 1) * cellWidth);
  const gapX = cellWidth >= 4 ? 1 : 0;
  const gapY = cellHeight >= 4 ? 1 : 0;
  const y = top + row * cellHeight;
  return { x, y, width: Math.max(1, end - x - gapX), height: cellHeight - gapY };
}

export interface Ink {
  text: string;
  faint: string;
  hairline: string;
  accent: string;
  empty: string;
  /** From no load to much. */
  ramp: readonly string[];
  loading: string;
  draining: string;
  planned: string;
  bad: string;
  font: string;
}

/** The colour for `share`, 0 to 1, of what is much. */
export const rampAt = ({ ramp }: Ink, share: number) =>
  ramp[Math.min(ramp.length - 1, Math.max(0, Math.floor(share * ramp.length)))]!;

/** Sets a canvas up for its screen's pixels, and clears it. */
export function prepare(canvas: HTMLCanvasElement, grid: Grid): CanvasRenderingContext2D {
  const { width, height } = gridSize(grid);
  const ratio = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext('2d')!;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Every so many columns are numbered, so that numbers do not touch. */
const stepFor = (width: number) => [1, 2, 4, 8, 16, 32, 64].find((step) => step * width >= 26) ?? 128;

export function drawColumnLabels(
  context: CanvasRenderingContext2D,
  grid: Grid,
  ink: Ink,
  label: (column: number) => string,
): void {
  const step = stepFor(grid.cellWidth);
  context.font = ink.font;
  context.fillStyle = ink.faint;
  context.textAlign = 'left';
  context.textBaseline = 'alphabetic';
  for (let column = 0; column < grid.columns; column += step)
    context.fillText(label(column), Math.round(grid.left + column * grid.cellWidth), grid.top - 5);
}

export interface RowLabel {
  text: string;
  /** Of another group than the row above. */
  begins: boolean;
  tone: 'text' | 'bad' | 'draining';
}

export function drawRowLabels(
  context: CanvasRenderingContext2D,
  grid: Grid,
  ink: Ink,
  labels: readonly RowLabel[],
): void {
  const step = Math.max(1, Math.ceil(11 / grid.cellHeight));
  context.font = ink.font;
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  for (const [row, { text, begins, tone }] of labels.entries()) {
    const y = grid.top + row * grid.cellHeight;
    if (begins && row > 0) {
      context.fillStyle = ink.hairline;
      context.fillRect(0, y - 1, gridSize(grid).width, 1);
    }
    if (grid.left === 0 || row % step !== 0) continue;
    context.fillStyle = ink[tone];
    context.fillText(text, grid.left - 8, y + grid.cellHeight / 2, grid.left - 10);
  }
}

/** What is pointed at, and the column that is chosen, if one is: on a canvas of its own, above the cells. */
export function drawMarks(
  canvas: HTMLCanvasElement,
  grid: Grid,
  ink: Ink,
  cursor: Cell | null,
  chosen: number | null,
): void {
  const context = prepare(canvas, grid);
  if (chosen !== null) {
    const { x, width } = cellBox(grid, chosen, 0);
    context.strokeStyle = ink.text;
    context.lineWidth = 1.5;
    context.strokeRect(x - 1, grid.top - 1.5, width + 2, grid.rows * grid.cellHeight + 1);
  }
  if (cursor === null) return;
  const { x, y, width, height } = cellBox(grid, cursor.column, cursor.row);
  context.strokeStyle = ink.accent;
  context.lineWidth = 2;
  context.strokeRect(x - 1, y - 1, width + 2, height + 2);
}
