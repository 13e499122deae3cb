/**
 * 500 clients and 10,000 batches come and go at a cluster of processes, over each transport; 30 clients are stopped and 50 are
 * killed in the middle of their batches. What the cluster holds must be back where it was, clientStallMs later, while the
 * stopped clients are still there: node scripts/check-churn.mjs [TRANSPORT] (after npm run bootstrap)
 */
import { formatChurn, runChurn } from '../dist/bench/churn.js';

const log = (line) => process.stderr.write(`${line}\n`);
const chosen = process.argv[2];
let leaks = 0;
for (const transport of chosen ? [chosen] : ['grpc', 'ucx']) {
  const counts = { clients: 420, processes: 20, batches: 10_080, stopped: 30, killed: 50 };
  const report = await runChurn({ transport, ...counts, clientStallMs: 30_000, log });
  process.stdout.write(
    `over ${transport}: ${counts.clients} clients in ${counts.processes} processes come and go, ` +
      `${counts.stopped} more are stopped, ${counts.killed} killed\n${formatChurn(report)}\n\n`,
  );
  if (report.backAfterMs === null || report.failed.length > 0) leaks += 1;
}
process.exit(leaks === 0 ? 0 : 1);
