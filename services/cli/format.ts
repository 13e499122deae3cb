/** Numbers and tables for people. */

export const count = (value: number): string => Math.round(value).toLocaleString('en-US');

export const percent = (value: number): string => `${(value * 100).toFixed(1)} %`;

export function bytes(value: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let scaled = value;
  while (scaled >= 1024 && unit < units.length - 1) {
    scaled /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? scaled : scaled.toFixed(scaled < 10 ? 2 : 1)} ${units[unit]}`;
}

export function seconds(value: number): string {
  if (value < 1) return `${(value * 1000).toFixed(0)} ms`;
  if (value < 120) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Experts of all layers. */
export const expertsOf = (layers: readonly { experts: number }[]): number =>
  layers.reduce((sum, { experts }) => sum + experts, 0);

/** Left-aligned columns; the first row is the head. */
export function table(rows: readonly (readonly string[])[]): string {
  const columns = rows[0]!.length;
  const odd = rows.find((row) => row.length !== columns);
  if (odd)
    throw new Error(`a row of ${odd.length} cells in a table of ${columns} columns: ${odd.join(', ')}`);
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
