import {
  cellBox,
  drawColumnLabels,
  drawRowLabels,
  type Grid,
  type Ink,
  prepare,
  type RowLabel,
  rampAt,
} from './grid.js';
import type { LayerCopies, WorkerRow } from './placed.js';

export interface Heat {
  rows: readonly WorkerRow[];
  labels: readonly RowLabel[];
  ink: Ink;
}

/** A worker with twice the load of the others, and an expert with four times, are as hot as can be shown. */
const hot = { worker: 2, expert: 4 };

/** Layers × workers: what each worker gets of a layer, by what workers get on average. */
export function drawLayers(
  canvas: HTMLCanvasElement,
  grid: Grid,
  { rows, labels, ink }: Heat,
  layers: readonly { layer: number; copies: LayerCopies | null }[],
): void {
  const context = prepare(canvas, grid);
  drawColumnLabels(context, grid, ink, (column) => String(layers[column]!.layer));
  drawRowLabels(context, grid, ink, labels);
  for (const [column, { copies }] of layers.entries()) {
    const held = new Set(copies?.slot);
    for (const [row, { slot }] of rows.entries()) {
      const { x, y, width, height } = cellBox(grid, column, row);
      context.fillStyle = ink.empty;
      if (copies !== null && held.has(slot)) {
        const share = copies.workerMean === 0 ? 0 : copies.bySlot[slot]! / copies.workerMean / hot.worker;
        context.fillStyle = rampAt(ink, share);
      }
      context.fillRect(x, y, width, height);
    }
  }
}

/** Experts × workers of one layer: a cell for each copy. Its state is told by its form too, not by colour alone. */
export function drawExperts(
  canvas: HTMLCanvasElement,
  grid: Grid,
  { rows, labels, ink }: Heat,
  copies: LayerCopies | null,
): void {
  const context = prepare(canvas, grid);
  drawColumnLabels(context, grid, ink, String);
  drawRowLabels(context, grid, ink, labels);
  context.fillStyle = ink.empty;
  for (let row = 0; row < grid.rows; row += 1) {
    const { y, height } = cellBox(grid, 0, row);
    context.fillRect(grid.left, y, Math.round(grid.columns * grid.cellWidth), height);
  }
  if (copies !== null) {
    const rowOf = new Map(rows.map(({ slot }, row) => [slot, row]));
    for (let copy = 0; copy < copies.expert.length; copy += 1) {
      const row = rowOf.get(copies.slot[copy]!);
      if (row === undefined) continue;
      const expert = copies.expert[copy]!;
      const box = cellBox(grid, expert, row);
      drawCopy(context, ink, box, copies.state[copy]!, heatOf(copies, expert));
    }
  }
}

/** Of one copy: 0 to 1. */
function heatOf({ rates, serving, expertMean }: LayerCopies, expert: number): number {
  return expertMean === 0 ? 0 : rates[expert]! / Math.max(1, serving[expert]!) / expertMean / hot.expert;
}

interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

function drawCopy(
  context: CanvasRenderingContext2D,
  ink: Ink,
  { x, y, width, height }: Box,
  state: number,
  heat: number,
): void {
  const line = Math.min(2, Math.max(1, Math.floor(Math.min(width, height) / 4)));
  switch (state) {
    case 0: // loading: a frame
      context.strokeStyle = ink.loading;
      context.lineWidth = line;
      context.strokeRect(x + line / 2, y + line / 2, width - line, height - line);
      return;
    case 1: // serving: full
      context.fillStyle = rampAt(ink, heat);
      context.fillRect(x, y, width, height);
      return;
    case 2: // draining: its lower half
      context.fillStyle = ink.draining;
      context.fillRect(x, y + Math.floor(height / 2), width, Math.ceil(height / 2));
      return;
    default: // planned: a dot
      context.fillStyle = ink.planned;
      context.fillRect(
        x + Math.floor(width / 3),
        y + Math.floor(height / 3),
        Math.max(1, Math.ceil(width / 3)),
        Math.max(1, Math.ceil(height / 3)),
      );
  }
}
