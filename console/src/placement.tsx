import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { type ConsoleState, copyStates } from '../../services/coordinator/console/wire.js';
import { count, whole } from './format.js';
import { type Cell, cellAt, drawMarks, type Grid, gridFor, type Ink, type RowLabel } from './grid.js';
import { drawExperts, drawLayers } from './heat.js';
import { useInk, useWidth } from './look.js';
import { layerOf, type WorkerRow, workerRows } from './placed.js';

const heightMax = 460;
const labelWidthMax = 150;

interface Props {
  state: ConsoleState;
  shown: string;
}

/** Where the copies of experts are, how much each gets, and what moves. */
export function PlacementPanel({ state, shown }: Props) {
  const { model, workers } = state.cluster.now!;
  const [chosen, setChosen] = useState(0);
  const [cursor, setCursor] = useState<{ of: 'layers' | 'experts'; cell: Cell } | null>(null);
  const ink = useInk(shown);
  const rows = useMemo(() => workerRows(state), [state.nodes, workers]);
  const labels = useMemo(() => rows.map(labelOf), [rows]);
  const layers = useMemo(
    () => model.layers.map(({ layer }) => ({ layer, copies: layerOf(state, layer) })),
    [state.copies, state.loads, model],
  );
  const column = Math.min(chosen, layers.length - 1);
  const { layer, copies } = layers[column]!;
  const experts = model.layers[column]!.experts;
  const heat = { rows, labels, ink };
  const labelWidth = useMemo(() => widest(labels, ink.font), [labels, ink]);
  const at = (of: 'layers' | 'experts') => (cursor?.of === of ? cursor.cell : null);
  return (
    <section class="panel placement" aria-labelledby="placement-title">
      <header>
        <h2 id="placement-title">Experts on workers</h2>
        <Legend />
      </header>
      {rows.length === 0 ? (
        <p class="quiet">No worker has joined.</p>
      ) : (
        <>
          <div class="maps">
            <HeatMap
              class="overview"
              label={`Heat map of ${layers.length} layers by ${rows.length} workers`}
              title="Layers"
              columns={layers.length}
              rows={rows.length}
              labels={labelWidth}
              cursor={at('layers')}
              draw={(canvas, grid) => drawLayers(canvas, grid, heat, layers)}
              ink={ink}
              chosen={column}
              deps={[rows, ink, layers]}
              onCell={(cell, isChosen) => {
                setCursor(cell && { of: 'layers', cell });
                if (cell !== null && isChosen) setChosen(cell.column);
              }}
            />
            <HeatMap
              class="detail"
              label={`Heat map of ${experts} experts of layer ${layer} by ${rows.length} workers`}
              title={`Experts of layer ${layer}`}
              columns={experts}
              rows={rows.length}
              labels={labelWidth}
              cursor={at('experts')}
              draw={(canvas, grid) => drawExperts(canvas, grid, heat, copies)}
              ink={ink}
              chosen={null}
              deps={[rows, ink, copies]}
              onCell={(cell) => setCursor(cell && { of: 'experts', cell })}
            />
          </div>
          <p class="readout" role="status" id="placement-readout">
            {cursor === null
              ? 'Point at a cell, or focus a map and use the arrow keys. A click or Enter chooses a layer.'
              : describe(state, rows, cursor.of, cursor.cell, layer)}
          </p>
        </>
      )}
    </section>
  );
}

function widest(labels: readonly RowLabel[], font: string): number {
  const context = document.createElement('canvas').getContext('2d')!;
  context.font = font;
  const widths = labels.map(({ text }) => Math.ceil(context.measureText(text).width) + 10);
  return Math.min(labelWidthMax, Math.max(24, ...widths));
}

const labelOf = (
  { name, host, state, mark }: WorkerRow,
  row: number,
  rows: readonly WorkerRow[],
): RowLabel => ({
  text: name,
  begins: rows[row - 1]?.host !== host,
  tone: state === 'DEAD' ? 'bad' : mark === 'DRAINED' || state === 'DRAINING' ? 'draining' : 'text',
});

function describe(
  state: ConsoleState,
  rows: readonly WorkerRow[],
  of: 'layers' | 'experts',
  cell: Cell,
  chosen: number,
): string {
  const worker = rows[cell.row];
  if (worker === undefined) return '';
  const layer = of === 'layers' ? state.cluster.now!.model.layers[cell.column]?.layer : chosen;
  const copies = layer === undefined ? null : layerOf(state, layer);
  if (copies === null) return '';
  const where = `${worker.name} on ${worker.host || 'a host unknown'}`;
  const mean = (rate: number, of: number) =>
    of === 0 ? 'no rows of late' : `${count(rate)} rows/s, ${(rate / of).toFixed(2)} × the mean`;
  if (of === 'layers') {
    const held = copies.slot.reduce((sum, slot) => sum + (slot === worker.slot ? 1 : 0), 0);
    return `Layer ${layer}, ${where}: ${whole(held)} copies, ${mean(copies.bySlot[worker.slot] ?? 0, copies.workerMean)}`;
  }
  const expert = cell.column;
  const at = copies.expert.findIndex((one, copy) => one === expert && copies.slot[copy] === worker.slot);
  const copyState = at < 0 ? 'no copy' : `copy ${copyStates[copies.state[at]!]}`;
  const total = copies.serving[expert]!;
  const rate = copies.rates[expert] ?? 0;
  return `Layer ${layer} expert ${expert}, ${where}: ${copyState}; ${total === 1 ? '1 copy serves' : `${total} copies serve`} it, ${mean(rate, copies.expertMean)}`;
}

function Legend() {
  return (
    <ul class="legend">
      <li>
        <span class="swatch ramp" /> load: none to much
      </li>
      <li>
        <span class="swatch loading" /> loading
      </li>
      <li>
        <span class="swatch draining" /> draining
      </li>
      <li>
        <span class="swatch planned" /> planned
      </li>
    </ul>
  );
}

interface MapProps {
  class: string;
  label: string;
  title: string;
  columns: number;
  rows: number;
  labels: number;
  cursor: Cell | null;
  ink: Ink;
  /** A column. */
  chosen: number | null;
  draw: (canvas: HTMLCanvasElement, grid: Grid) => void;
  /** What the drawing depends on. */
  deps: readonly (object | number | null)[];
  /** `isChosen`: by a click, Enter or the arrow keys. Null: the pointer has left. */
  onCell: (cell: Cell | null, isChosen: boolean) => void;
}

const steps: Readonly<Record<string, readonly [number, number]>> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

function HeatMap(props: MapProps) {
  const { label, title, columns, rows, labels, cursor, chosen, ink, draw, deps, onCell } = props;
  const frame = useRef<HTMLDivElement>(null);
  const cells = useRef<HTMLCanvasElement>(null);
  const marks = useRef<HTMLCanvasElement>(null);
  const width = useWidth(frame);
  const grid = useMemo(
    () => gridFor(columns, rows, width, heightMax, labels),
    [columns, rows, width, labels],
  );
  useEffect(() => {
    if (width > 0) draw(cells.current!, grid);
  }, [grid, ...deps]);
  useEffect(() => {
    if (width > 0) drawMarks(marks.current!, grid, ink, cursor, chosen);
  }, [grid, ink, chosen, cursor?.column, cursor?.row]);
  const cellOf = (event: MouseEvent) => cellAt(grid, event.offsetX, event.offsetY);
  const onKey = (event: KeyboardEvent) => {
    const [x, y] = steps[event.key] ?? [0, 0];
    const isEnter = event.key === 'Enter' || event.key === ' ';
    if (x === 0 && y === 0 && !isEnter) return;
    event.preventDefault();
    const { column, row } = cursor ?? { column: 0, row: 0 };
    const within = (value: number, end: number) => Math.min(end - 1, Math.max(0, value));
    onCell({ column: within(column + x, columns), row: within(row + y, rows) }, isEnter || x !== 0);
  };
  return (
    <div class={`map ${props.class}`}>
      <h3>{title}</h3>
      <div class="frame" ref={frame}>
        <canvas ref={cells} class="cells" />
        <canvas
          ref={marks}
          tabIndex={0}
          role="application"
          aria-roledescription="heat map"
          aria-label={label}
          aria-describedby="placement-readout"
          onMouseMove={(event: MouseEvent) => onCell(cellOf(event), false)}
          onMouseLeave={() => onCell(null, false)}
          onClick={(event: MouseEvent) => onCell(cellOf(event), true)}
          onKeyDown={onKey}
        />
      </div>
    </div>
  );
}
