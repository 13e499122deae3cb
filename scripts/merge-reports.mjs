/**
 * Adds the figures of one report of a benchmark to another, where they take the place of figures of the same names, or to none.
 *
 *   node scripts/merge-reports.mjs INTO.json FROM.json
 */
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';

const [into, from] = process.argv.slice(2);
if (from === undefined) {
  process.stderr.write('usage: node scripts/merge-reports.mjs INTO.json FROM.json\n');
  process.exit(2);
}
const read = (path) => JSON.parse(readFileSync(path, 'utf8'));
const report = existsSync(into) ? read(into) : { machine: {}, results: [] };
const added = read(from);
const names = new Set(added.results.map(({ id }) => id));
const merged = {
  machine: { ...report.machine, ...added.machine },
  results: [...report.results.filter(({ id }) => !names.has(id)), ...added.results],
};
// Whole at any time.
writeFileSync(`${into}.unfinished`, `${JSON.stringify(merged, null, 2)}\n`);
renameSync(`${into}.unfinished`, into);
