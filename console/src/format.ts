const scaled = (value: number, step: number, units: readonly string[]): string => {
  let unit = 0;
  let rest = value;
  while (Math.abs(rest) >= step && unit < units.length - 1) {
    rest /= step;
    unit += 1;
  }
  const digits =
    unit === 0 && Number.isInteger(rest) ? 0 : Math.abs(rest) < 10 ? 2 : Math.abs(rest) < 100 ? 1 : 0;
  return `${rest.toFixed(digits)}${units[unit]}`;
};

/** 950, 1.20k, 34.5M. */
export const count = (value: number) => scaled(value, 1000, ['', 'k', 'M', 'G', 'T']);
/** 120 B, 1.20 MB. */
export const bytes = (value: number) => scaled(value, 1000, [' B', ' kB', ' MB', ' GB', ' TB']);
/** As memory is counted. */
export const memory = (value: number) => scaled(value, 1024, [' B', ' KiB', ' MiB', ' GiB', ' TiB']);
export const percent = (share: number) => `${Math.round(share * 100)}%`;
export const whole = (value: number) => value.toLocaleString('en');

export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const clockTime = (at: number) => new Date(at).toLocaleTimeString('en-GB');

const names = new Intl.Collator('en', { numeric: true });
export const byName = (a: string, b: string) => names.compare(a, b);
