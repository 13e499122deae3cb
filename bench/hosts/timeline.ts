import type { Interval } from '../../services/common/trace.js';

/** One thing that a worker did, from its trace. */
export interface TimelineSpan extends Interval {
  lane: string;
  name: string;
}

interface TraceEvent {
  ph: string;
  tid: number;
  name: string;
  ts: number;
  dur?: number;
  id?: number;
  args?: Record<string, unknown>;
}

/** The spans of a trace file: complete events, and pairs of begin and end. */
export function readTrace(text: string): TimelineSpan[] {
  const events = JSON.parse(text) as TraceEvent[];
  const lanes = new Map<number, string>();
  const open = new Map<number, TraceEvent>();
  const spans: TimelineSpan[] = [];
  for (const event of events) {
    const lane = lanes.get(event.tid) ?? '';
    if (event.name === 'thread_name') lanes.set(event.tid, String(event.args!.name));
    else if (event.ph === 'X')
      spans.push({ lane, name: event.name, start: event.ts, end: event.ts + event.dur! });
    else if (event.ph === 'b') open.set(event.id!, event);
    else if (event.ph === 'e') {
      const begin = open.get(event.id!)!;
      open.delete(event.id!);
      spans.push({ lane, name: event.name, start: begin.ts, end: event.ts });
    }
  }
  return spans;
}

/** Intervals without their overlaps, in order. */
export function union(intervals: readonly Interval[]): Interval[] {
  const merged: Interval[] = [];
  for (const { start, end } of [...intervals].sort((a, b) => a.start - b.start)) {
    const last = merged.at(-1);
    if (last && start <= last.end) last.end = Math.max(last.end, end);
    else merged.push({ start, end });
  }
  return merged;
}

/** Microseconds that are in both of two unions. */
export function overlap(a: readonly Interval[], b: readonly Interval[]): number {
  let sum = 0;
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    sum += Math.max(0, Math.min(a[i]!.end, b[j]!.end) - Math.max(a[i]!.start, b[j]!.start));
    if (a[i]!.end < b[j]!.end) i += 1;
    else j += 1;
  }
  return sum;
}

export function length(intervals: readonly Interval[]): number {
  return intervals.reduce((sum, { start, end }) => sum + end - start, 0);
}

const width = 1_200;
const labelWidth = 190;
const rowHeight = 12;
const laneGap = 10;
const top = 56;
const colors: Record<string, string> = { receive: '#3b78b5', compute: '#c2563a', send: '#3f8f5f' };
const colorOf = (lane: string) => colors[lane.split(' ')[0]!] ?? '#888888';

/** Rows of a lane: a span takes the first row that is free at its start. */
function stack(spans: readonly TimelineSpan[]): TimelineSpan[][] {
  const rows: TimelineSpan[][] = [];
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    const row = rows.find((one) => one.at(-1)!.end <= span.start);
    if (row) row.push(span);
    else rows.push([span]);
  }
  return rows;
}

/** A picture of the spans between `from` and `to`, lane under lane, with time from left to right. */
export function drawTimeline(title: string, all: readonly TimelineSpan[], from: number, to: number): string {
  const shown = all.filter(({ start, end }) => end > from && start < to);
  const x = (time: number) =>
    labelWidth + ((Math.min(Math.max(time, from), to) - from) / (to - from)) * (width - labelWidth - 30);
  const order = Object.keys(colors);
  const rank = (lane: string) => order.indexOf(lane.split(' ')[0]!);
  const lanes = [...new Set(shown.map(({ lane }) => lane))].sort(
    (a, b) => rank(a) - rank(b) || a.localeCompare(b, 'en'),
  );
  const parts: string[] = [];
  let y = top;
  for (const lane of lanes) {
    const rows = stack(shown.filter((span) => span.lane === lane));
    parts.push(`<text x="8" y="${y + rowHeight - 2}">${lane}</text>`);
    for (const row of rows) {
      for (const { start, end, name } of row) {
        const left = x(start);
        const title = `<title>${name}, ${((end - start) / 1000).toFixed(2)} ms</title>`;
        parts.push(
          `<rect x="${left.toFixed(2)}" y="${y}" width="${Math.max(0.6, x(end) - left - 0.3).toFixed(2)}" height="${rowHeight - 2}" fill="${colorOf(lane)}">${title}</rect>`,
        );
      }
      y += rowHeight;
    }
    y += laneGap;
  }
  return frame(title, parts, { from, to, x, bottom: y });
}

interface Scale {
  from: number;
  to: number;
  x: (time: number) => number;
  bottom: number;
}

function frame(title: string, parts: readonly string[], { from, to, x, bottom }: Scale): string {
  const ticks: string[] = [];
  const step = 10 ** Math.floor(Math.log10((to - from) / 5));
  const every = [1, 2, 5].map((factor) => factor * step).find((size) => (to - from) / size <= 12)!;
  for (let time = from; time <= to; time += every) {
    const at = x(time).toFixed(1);
    ticks.push(`<line x1="${at}" x2="${at}" y1="${top - 8}" y2="${bottom}" stroke="#dddddd"/>`);
    ticks.push(
      `<text x="${at}" y="${top - 14}" text-anchor="middle">${Math.round((time - from) / 1000)} ms</text>`,
    );
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${bottom + 8}" font-family="sans-serif" font-size="11">`,
    '<rect width="100%" height="100%" fill="#ffffff"/>',
    `<text x="8" y="18" font-size="13">${title}</text>`,
    ...ticks,
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}
