import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import type { Sample } from '../../services/coordinator/console/wire.js';
import { bytes, clockTime, count, percent } from './format.js';
import { useWidth } from './look.js';
import { colour } from './theme.js';

interface Line {
  label: string;
  read: (sample: Sample) => number | null;
  colour: string;
  /** Filled below, or as bars. */
  form?: 'area' | 'bars';
}

interface ChartProps {
  title: string;
  lines: readonly Line[];
  format: (value: number) => string;
  /** At the scale, where there is less room. */
  short: (value: number) => string;
  /** The scale's end; otherwise it follows the values. */
  max?: number;
  samples: readonly Sample[];
  shown: string;
}

const height = 92;

const charts: readonly Omit<ChartProps, 'samples' | 'shown'>[] = [
  {
    title: 'Throughput',
    format: (value) => `${count(value)} tokens/s`,
    short: count,
    lines: [
      { label: 'tokens', read: ({ tokensPerSecond }) => tokensPerSecond, colour: 'accent', form: 'area' },
    ],
  },
  {
    title: 'Traffic on links',
    format: (value) => `${bytes(value)}/s`,
    short: bytes,
    lines: [{ label: 'rows', read: ({ bytesPerSecond }) => bytesPerSecond, colour: 'second', form: 'area' }],
  },
  {
    title: 'Balancedness',
    format: (value) => value.toFixed(2),
    short: (value) => value.toFixed(1),
    max: 1,
    lines: [
      { label: 'of all layers', read: ({ balancedness }) => balancedness, colour: 'accent' },
      { label: 'least even layer', read: ({ balancednessMin }) => balancednessMin, colour: 'loading' },
    ],
  },
  {
    title: 'Pauses',
    format: percent,
    short: percent,
    max: 1,
    lines: [
      { label: 'time in which nothing moved', read: ({ paused }) => paused, colour: 'bad', form: 'bars' },
    ],
  },
];

/** The last minutes. */
export function Charts({ samples, shown }: { samples: Record<string, Sample>; shown: string }) {
  const list = useMemo(() => Object.values(samples), [samples]);
  return (
    <div class="charts">
      {charts.map((chart) => (
        <Chart key={chart.title} {...chart} samples={list} shown={shown} />
      ))}
    </div>
  );
}

function Chart({ title, lines, format, short, max, samples, shown }: ChartProps) {
  const frame = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const width = useWidth(frame);
  const [pointed, setPointed] = useState<number | null>(null);
  const data = useMemo(
    () =>
      [
        samples.map(({ at }) => at / 1000),
        ...lines.map(({ read }) => samples.map(read)),
      ] as uPlot.AlignedData,
    [samples],
  );
  useEffect(() => {
    if (width === 0) return;
    const made = new uPlot(optionsOf(lines, short, max, width, setPointed), data, frame.current!);
    plot.current = made;
    return () => {
      plot.current = null;
      made.destroy();
    };
  }, [width === 0, shown]);
  useEffect(() => plot.current?.setSize({ width, height }), [width]);
  useEffect(() => plot.current?.setData(data), [data]);
  const sample = samples[pointed ?? samples.length - 1];
  const values = lines.map((line) => ({ line, value: sample === undefined ? null : line.read(sample) }));
  const said = values
    .map(({ line, value }) => `${line.label} ${value === null ? 'none' : format(value)}`)
    .join(', ');
  return (
    <section class="panel chart" aria-label={`${title}: ${said}`}>
      <header>
        <h2>{title}</h2>
        <span class="quiet">{pointed !== null && sample !== undefined ? clockTime(sample.at) : ''}</span>
      </header>
      <p class="figures">
        {values.map(({ line, value }) => (
          <span key={line.label} class={`figure ${value ? `ink-${line.colour}` : ''}`}>
            <b>{value === null ? '–' : format(value)}</b> {lines.length > 1 && <small>{line.label}</small>}
          </span>
        ))}
      </p>
      <div class="plot" ref={frame} aria-hidden="true" />
    </section>
  );
}

function optionsOf(
  lines: readonly Line[],
  short: (value: number) => string,
  max: number | undefined,
  width: number,
  onPointed: (index: number | null) => void,
): uPlot.Options {
  const axis = { stroke: colour('faint'), font: `10px ${getComputedStyle(document.body).fontFamily}` };
  const hairline = { stroke: colour('line'), width: 1 };
  return {
    width,
    height,
    padding: [6, 4, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: 'time' }, drag: { x: false, y: false }, points: { size: 5 } },
    scales: { x: { time: true }, y: { range: (_, __, top) => [0, max ?? Math.max(top * 1.1, 1)] } },
    axes: [
      {
        ...axis,
        size: 20,
        gap: 2,
        space: 90,
        grid: { show: false },
        ticks: { show: false },
        // Seconds are told where minutes would repeat themselves.
        values: (_, at) => {
          const digits = (at[1] ?? 0) - (at[0] ?? 0) < 60 ? 8 : 5;
          return at.map((one) => clockTime(one * 1000).slice(0, digits));
        },
      },
      {
        ...axis,
        size: 46,
        gap: 4,
        space: 28,
        grid: hairline,
        ticks: { show: false },
        values: (_, at) => at.map(short),
      },
    ],
    series: [
      {},
      ...lines.map((line): uPlot.Series => {
        const bars =
          line.form === 'bars'
            ? { paths: uPlot.paths.bars!({ size: [1, 8] }), fill: colour(line.colour), width: 0 }
            : {};
        const area = line.form === 'area' ? { fill: `${colour(line.colour)}22` } : {};
        return {
          label: line.label,
          stroke: colour(line.colour),
          width: 1.5,
          points: { show: false },
          ...area,
          ...bars,
        };
      }),
    ],
    hooks: { setCursor: [(plot) => onPointed(plot.cursor.idx ?? null)] },
  };
}
