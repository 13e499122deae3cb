import type { RefObject } from 'preact';
import { useLayoutEffect, useMemo, useState } from 'preact/hooks';
import type { Ink } from './grid.js';
import { colour } from './theme.js';

/** The colours of heat maps; `shown`: the theme. */
export function useInk(shown: string): Ink {
  return useMemo(
    () => ({
      text: colour('text'),
      faint: colour('faint'),
      hairline: colour('line'),
      accent: colour('accent'),
      empty: colour('empty'),
      ramp: rampOf(colour('heat-0'), colour('heat-1'), colour('heat-2')),
      loading: colour('loading'),
      draining: colour('draining'),
      planned: colour('planned'),
      bad: colour('bad'),
      font: `11px ${getComputedStyle(document.body).fontFamily}`,
    }),
    [shown],
  );
}

const shades = 32;

/** Shades from the first colour (#rrggbb) over the second to the third. */
function rampOf(...stops: string[]): string[] {
  const parts = stops.map((stop) => [1, 3, 5].map((at) => Number.parseInt(stop.slice(at, at + 2), 16)));
  return Array.from({ length: shades }, (_, shade) => {
    const place = (shade / (shades - 1)) * (parts.length - 1);
    const from = Math.min(parts.length - 2, Math.floor(place));
    const mixed = [0, 1, 2].map(
      (at) => parts[from]![at]! + (parts[from + 1]![at]! - parts[from]![at]!) * (place - from),
    );
    return `rgb(${mixed.map(Math.round).join(' ')})`;
  });
}

/** The width of an element, as it changes; 0: not known yet. */
export function useWidth(element: RefObject<HTMLElement | null>): number {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry!.contentRect.width)));
    observer.observe(element.current!);
    return () => observer.disconnect();
  }, []);
  return width;
}
