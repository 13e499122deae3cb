/**
 * Many clusters with limits at their extremes (test/limits): node scripts/check-limits.mjs [CLUSTERS, 1000] [FIRST SEED, 1].
 * A hundred clusters share a process and a seed. What fails is printed with seed, path and options; replay it with
 *   SWITCHYARD_LIMIT_SEED=… SWITCHYARD_LIMIT_PATH=… npm test -- test/limits
 */
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const clustersMax = 100;
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const clusters = Number(process.argv[2] ?? 1000);
let seed = Number(process.argv[3] ?? 1);
const failed = [];

for (let left = clusters; left > 0; left -= clustersMax, seed += 1) {
  const { status } = spawnSync(process.execPath, [join(root, 'scripts', 'test.mjs'), 'test/limits'], {
    cwd: root,
    stdio: 'inherit',
    env: {
      ...process.env,
      SWITCHYARD_LIMIT_RUNS: String(Math.min(left, clustersMax)),
      SWITCHYARD_LIMIT_SEED: String(seed),
    },
  });
  if (status !== 0) failed.push(seed);
}
process.stdout.write(
  failed.length === 0
    ? `${clusters} clusters: every batch completed, or was refused by name\n`
    : `failed with the seeds ${failed.join(', ')}\n`,
);
process.exit(failed.length === 0 ? 0 : 1);
