/**
 * A real Prometheus scrapes real clusters: each alert is made to fire by a fault and ends when that is mended; every recorded series and every query of a
 * panel has data. Minutes of the rules are seconds here: node scripts/check-alerts.mjs [ALERT...] (after npm run bootstrap; needs
 * prometheus and openssl in PATH)
 */
import { watchTrials } from '../dist/bench/watch/run.js';

const log = (line) => process.stderr.write(`${line}\n`);
const report = await watchTrials({ alerts: process.argv.slice(2), log });
const { tried, untried, falseAlarms, withoutData, queries } = report;
const seconds = (ms) => (ms === null ? 'not' : `${(ms / 1000).toFixed(1)} s`);
for (const { alert, fault, firedAfterMs, clearedAfterMs } of tried)
  process.stdout.write(
    `${alert}: fired ${seconds(firedAfterMs)} after: ${fault}; cleared ${seconds(clearedAfterMs)} after its mending\n`,
  );
const say = (what, names) => {
  if (names.length > 0) process.stdout.write(`${what}:\n${names.map((name) => `  ${name}\n`).join('')}`);
};
say('never tried', untried);
say('fired while all was well', falseAlarms);
say('never had data', withoutData);
process.stdout.write(
  `${queries - withoutData.length} of ${queries} recorded series and queries of panels had data\n`,
);
const failed = tried.filter((one) => one.firedAfterMs === null || one.clearedAfterMs === null);
process.exit(failed.length + untried.length + falseAlarms.length + withoutData.length === 0 ? 0 : 1);
